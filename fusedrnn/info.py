"""What is installed and what runs on this machine: ``python -m fusedrnn.info`` prints it for bug reports."""

from __future__ import annotations

import platform
from dataclasses import dataclass

import torch

from fusedrnn import _build_info as build
from fusedrnn import cuda


@dataclass(frozen=True)
class Info:
    fusedrnn: str
    torch: str
    python: str
    platform: str
    built_with: str  # compiler
    built_against: str  # torch whose headers and libraries the build used
    cpu_isa: str  # the kernels that were picked on this machine
    threads: int  # of torch's pool, which the kernels share
    cuda_kernels: str | None  # CUDA release and architectures that they were built for
    no_cuda_reason: str | None  # why there are none

    def __str__(self) -> str:
        lines = {
            "fusedrnn": self.fusedrnn,
            "torch": f"{self.torch} (built against {self.built_against})",
            "Python": f"{self.python} on {self.platform}",
            "compiler": self.built_with,
            "CPU kernels": f"{self.cpu_isa}, {self.threads} thread{'s' if self.threads != 1 else ''}",
            "CUDA kernels": self.cuda_kernels or f"no ({self.no_cuda_reason})",
        }
        return "\n".join(f"{name + ':':<14}{value}" for name, value in lines.items())


def info() -> Info:
    return Info(
        fusedrnn=build.VERSION,
        torch=torch.__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        built_with=build.COMPILER,
        built_against=build.TORCH,
        cpu_isa=torch.ops.fusedrnn.cpu_isa(),
        threads=torch.get_num_threads(),
        cuda_kernels=build.CUDA if cuda.unavailable is None else None,
        no_cuda_reason=cuda.unavailable,
    )


if __name__ == "__main__":
    print(info())
