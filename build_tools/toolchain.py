"""Finds what turns the sources into a library: a C++ compiler, Python's headers, ninja."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path


def compiler() -> list[str]:
    """The C++ compiler as a command line: $CXX (which may hold options or a launcher), else the first one on PATH."""
    if chosen := shlex.split(os.environ.get("CXX", "")):
        if shutil.which(chosen[0]):
            return chosen
        raise SystemExit(f"fusedrnn: CXX is set to {chosen[0]!r}, which cannot be run: unset it or name a compiler.")
    for name in ("g++", "clang++", "c++"):
        if path := shutil.which(name):
            return [path]
    raise SystemExit(
        "fusedrnn: no C++ compiler was found: install one (Debian and Ubuntu: `apt install g++`; Fedora: `dnf install "
        "gcc-c++`; conda: `conda install cxx-compiler`), or set CXX to it."
    )


def program(compiler: list[str]) -> str:
    """The compiler itself, without the launcher before it and the options after it."""
    return next((word for word in reversed(compiler) if not word.startswith("-")), compiler[0])


def describe(compiler: list[str]) -> str:
    answer = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False)
    return next(iter(answer.stdout.splitlines()), "unknown")


def python_include() -> Path:
    include = Path(sysconfig.get_path("include"))
    if (include / "Python.h").exists():
        return include
    package = f"python{sys.version_info.major}.{sys.version_info.minor}"
    raise SystemExit(
        f"fusedrnn: Python.h is missing from {include}: install the headers of this Python (Debian and Ubuntu: "
        f"`apt install {package}-dev`; Fedora: `dnf install {package}-devel`)."
    )


def ninja() -> str:
    # The script folders first: an environment need not be activated. An isolated build has its own on PATH.
    user_scheme = sysconfig.get_preferred_scheme("user")
    for folder in (sysconfig.get_path("scripts"), sysconfig.get_path("scripts", user_scheme), None):
        if path := shutil.which("ninja", path=folder):
            return path
    raise SystemExit("fusedrnn: ninja is needed to build: run `pip install ninja`, or drop --no-build-isolation.")


def check() -> None:
    """Stops with one sentence where something is missing, before anything large has been downloaded for the build."""
    if sys.platform not in ("linux", "darwin"):
        raise SystemExit(f"fusedrnn: its kernels build on Linux and macOS, not on {sys.platform}.")
    compiler()
    python_include()
