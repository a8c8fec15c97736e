"""Whether the CUDA kernels are there. Importing this loads them."""

from __future__ import annotations

import torch

from ._build_info import CUDA, CUDA_REASON


def _load() -> str | None:
    """Registers the operators for CUDA tensors, or says why it does not."""
    if CUDA is None:
        return CUDA_REASON
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    try:
        from . import _C_cuda  # type: ignore[attr-defined]  # noqa: F401
    except ImportError as error:
        return f"they do not load with torch {torch.__version__}: {error}"
    return None


unavailable: str | None = _load()  # why there are no CUDA kernels, or None
