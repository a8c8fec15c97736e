"""The PEP 517 backend: setuptools, plus one rule about torch.

Kernels are compiled against the torch they will run with. Listing torch under `build-system.requires` would make an
isolated build download another one, often a different release and several gigabytes, so it is asked for only where the
environment being installed into has none.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import target_torch
import toolchain

try:
    from setuptools import __version__ as setuptools_version
    from setuptools import build_meta
except ImportError:
    setuptools_version = "0"
if int(setuptools_version.split(".")[0]) < 77:
    # Only without build isolation; older releases fail on the licence field with a page of text.
    raise SystemExit(
        "fusedrnn: setuptools 77 or newer is needed to build: run `pip install --upgrade setuptools ninja`, or drop "
        "--no-build-isolation."
    )

Settings = dict[str, Any] | None

prepare_metadata_for_build_wheel = build_meta.prepare_metadata_for_build_wheel
prepare_metadata_for_build_editable = build_meta.prepare_metadata_for_build_editable
build_sdist = build_meta.build_sdist


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    toolchain.check()
    torch = target_torch.find()
    return [] if torch and torch.new_enough else [target_torch.REQUIREMENT]


get_requires_for_build_editable = get_requires_for_build_wheel


def get_requires_for_build_sdist(config_settings: Settings = None) -> list[str]:
    return []


def build_wheel(wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None) -> str:
    # setuptools packs all that it finds there, modules that were deleted since the last build included.
    for leftover in Path("build").glob("lib*"):
        shutil.rmtree(leftover)
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    # A page about folders that could shadow the package, which newer pips show even when asked to be quiet.
    warnings.filterwarnings("ignore", message="Editable installation")
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
