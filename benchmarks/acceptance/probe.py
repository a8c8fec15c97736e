"""Run as a program of its own, which needs no fusedrnn: what of Python and CUDA is here, as one line of JSON."""

from __future__ import annotations

import importlib.util
import json
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = ("torch", "numpy", "setuptools", "ninja", "pytest")


def _version(name: str) -> str | None:
    if importlib.util.find_spec(name) is None:
        return None
    try:
        return version(name)
    except PackageNotFoundError:  # on the path, but never installed
        return "unknown"


def found() -> dict[str, Any]:
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "gpus": [],
    }
    if facts["packages"]["torch"] is None:
        return facts
    import torch

    facts["packages"]["torch"] = torch.__version__
    facts["torch_cuda"] = torch.version.cuda
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            facts["gpus"].append(
                {
                    "name": properties.name,
                    "capability": f"{properties.major}.{properties.minor}",
                    "multiprocessors": properties.multi_processor_count,
                    "gib": round(properties.total_memory / 2**30, 1),
                }
            )
        facts["cudnn"] = torch.backends.cudnn.version()
    return facts


if __name__ == "__main__":
    print(json.dumps(found()))
    sys.exit(0)
