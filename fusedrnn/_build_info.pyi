"""Written by the build."""

VERSION: str
TORCH: str
COMPILER: str
CUDA: str | None
CUDA_REASON: str | None
