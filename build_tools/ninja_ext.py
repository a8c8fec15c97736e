"""A `build_ext` command that compiles an extension with ninja: flags per source, header dependencies, parallel jobs.

Objects stay in build/ninja/ between builds, so that an editable install recompiles what changed and nothing else.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import target_torch
import toolchain
from setuptools import Extension
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).parent
NO_CUDA = "no CUDA kernels in this version"


@dataclass(frozen=True)
class Source:
    path: str
    flags: str
    torch: bool = False  # may include torch's and Python's headers


class NinjaExtension(Extension):
    def __init__(self, name: str, units: Sequence[Source], libraries: Sequence[str]) -> None:
        super().__init__(name, [unit.path for unit in units], libraries=list(libraries), py_limited_api=True)
        self.units = units


class NinjaBuildExt(build_ext):
    def build_extension(self, ext: Extension) -> None:
        assert isinstance(ext, NinjaExtension)
        toolchain.check()
        _refuse_cuda()
        torch = target_torch.require()
        print(f"fusedrnn: building against torch {torch.version} in {torch.root}", flush=True)

        library = Path(self.get_ext_fullpath(ext.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        objects = Path("build", "ninja", f"{ext.name}-torch-{torch.version}")
        objects.mkdir(parents=True, exist_ok=True)
        built = objects / library.name
        manifest = objects / "build.ninja"
        manifest.write_text(_manifest(ext, torch, objects, built), encoding="utf-8")
        _run_ninja(manifest)
        self.copy_file(str(built), str(library))
        self._info_file(library).write_text(self._build_info(torch), encoding="utf-8")

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        for built, in_source in self._infos():
            self.copy_file(str(built), str(in_source))

    def get_outputs(self) -> list[str]:
        return [
            *super().get_outputs(),
            *(str(in_source if self.inplace else built) for built, in_source in self._infos()),
        ]

    def get_output_mapping(self) -> dict[str, str]:
        infos = {str(built): str(in_source) for built, in_source in self._infos()} if self.inplace else {}
        return {**super().get_output_mapping(), **infos}

    def _infos(self) -> Iterator[tuple[Path, Path]]:
        build_py = self.get_finalized_command("build_py")
        for ext in self.extensions:
            in_source, built = self._get_inplace_equivalent(build_py, ext)
            yield self._info_file(Path(built)), self._info_file(Path(in_source))

    @staticmethod
    def _info_file(library: Path) -> Path:
        return library.with_name("_build_info.py")

    def _build_info(self, torch: target_torch.Torch) -> str:
        facts = {
            "VERSION": self.distribution.get_version(),
            "TORCH": torch.version,
            "COMPILER": toolchain.describe(toolchain.compiler()),
            "CUDA": None,
            "CUDA_REASON": NO_CUDA,
        }
        lines = [f"{name} = {value!r}" for name, value in facts.items()]
        return "\n".join(['"""Written by the build."""', "", *lines, ""])


def _refuse_cuda() -> None:
    if os.environ.get("FUSEDRNN_CUDA", "auto") == "1":
        raise SystemExit(f"fusedrnn: FUSEDRNN_CUDA=1 asks for CUDA kernels, but there are {NO_CUDA}.")


def _manifest(ext: NinjaExtension, torch: target_torch.Torch, objects: Path, library: Path) -> str:
    # -isystem: the warnings of other people's headers are not ours to fix.
    glue = ["-isystem", str(torch.include), "-isystem", str(toolchain.python_include())]
    environment = [word for name in ("CPPFLAGS", "CXXFLAGS") for word in shlex.split(os.environ.get(name, ""))]
    lines = [
        "ninja_required_version = 1.5",
        f"builddir = {_path(objects)}",
        f"cxx = {_words(toolchain.compiler())}",
        "",
        "rule compile",
        "  command = $cxx -MMD -MF $out.d $flags -c $in -o $out",
        "  deps = gcc",
        "  depfile = $out.d",
        "  description = $cxx $in",
        "",
        "rule link",
        "  command = $cxx $in $flags -o $out",
        "  description = link $out",
    ]
    outputs = []
    for unit in ext.units:
        output = objects / Path(unit.path).with_suffix(".o")
        flags = ["-fPIC", *shlex.split(unit.flags), *(glue if unit.torch else []), *environment]
        lines += ["", f"build {_path(output)}: compile {_path(unit.path)}", f"  flags = {_words(flags)}"]
        outputs.append(_path(output))
    # The linker script is an implicit input: changing it links again.
    lines += [
        "",
        f"build {_path(library)}: link {' '.join(outputs)} | {_path(HERE / 'exports.map')}",
        f"  flags = {_words(_link_flags(ext, torch))}",
        "",
        f"default {_path(library)}",
        "",
    ]
    return "\n".join(lines)


def _link_flags(ext: NinjaExtension, torch: target_torch.Torch) -> list[str]:
    libraries = [f"-L{torch.lib}", *(f"-l{name}" for name in ext.libraries)]
    environment = shlex.split(os.environ.get("LDFLAGS", ""))
    if sys.platform == "darwin":
        return ["-bundle", "-undefined", "dynamic_lookup", *libraries, *environment]
    # -fvisibility=hidden cannot hide what the standard library declares visible, such as instances of its templates:
    # another extension in the same process must not bind to ours, which were compiled for this ISA.
    return ["-shared", f"-Wl,--version-script={HERE / 'exports.map'}", "-Wl,--as-needed", *libraries, *environment]


def _run_ninja(manifest: Path) -> None:
    jobs = os.environ.get("MAX_JOBS") or str(_cpus())
    command = [toolchain.ninja(), "-f", str(manifest), "-j", jobs]
    if subprocess.run(command, check=False).returncode != 0:
        raise SystemExit("fusedrnn: compiling failed; the compiler's first error is above.")


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _words(words: Sequence[str]) -> str:
    """Words of a command line: quoted for the shell, then with ninja's own `$` escaped."""
    return shlex.join(words).replace("$", "$$")


def _path(path: str | Path) -> str:
    """A path in a `build` line, where ninja splits at spaces and colons."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")
