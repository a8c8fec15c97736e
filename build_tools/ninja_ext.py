"""A `build_ext` command that compiles an extension with ninja: flags per source, header dependencies, parallel jobs.

Objects stay in build/ninja/ between builds, so that an editable install recompiles what changed and nothing else.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cuda_toolkit
import target_torch
import toolchain
from setuptools import Extension
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Source:
    path: str
    flags: str
    torch: bool = False  # may include torch's and Python's headers

    @property
    def kernel(self) -> bool:
        return self.path.endswith(".cu")


class NinjaExtension(Extension):
    """cuda: built where there is a toolkit, whose headers its sources may include; its .cu files are nvcc's."""

    def __init__(self, name: str, units: Sequence[Source], libraries: Sequence[str], cuda: bool = False) -> None:
        super().__init__(name, [unit.path for unit in units], libraries=list(libraries), py_limited_api=True)
        self.units = units
        self.cuda = cuda


@dataclass(frozen=True)
class Environment:
    """What the extensions are built against."""

    torch: target_torch.Torch
    cuda: cuda_toolkit.Toolkit | None


class NinjaBuildExt(build_ext):
    extensions: list[NinjaExtension]
    environment: Environment

    def build_extensions(self) -> None:
        toolchain.check()
        torch = target_torch.require()
        print(f"fusedrnn: building against torch {torch.version} in {torch.root}", flush=True)
        cuda = cuda_toolkit.find(torch)
        kernels = f"CUDA {cuda}" if isinstance(cuda, cuda_toolkit.Toolkit) else f"none, {cuda}"
        print(f"fusedrnn: CUDA kernels: {kernels}", flush=True)
        self.environment = Environment(torch, cuda if isinstance(cuda, cuda_toolkit.Toolkit) else None)
        if self.environment.cuda is None:
            self._drop_cuda()
        super().build_extensions()
        for info, _ in self._infos():
            info.write_text(self._build_info(cuda), encoding="utf-8")

    def _drop_cuda(self) -> None:
        """Leaves no CUDA kernels of an earlier build beside the package that is built without."""
        build_py = self.get_finalized_command("build_py")
        for ext in (ext for ext in self.extensions if ext.cuda):
            for library in self._get_inplace_equivalent(build_py, ext):
                Path(library).unlink(missing_ok=True)
        self.extensions = [ext for ext in self.extensions if not ext.cuda]

    def build_extension(self, ext: Extension) -> None:
        assert isinstance(ext, NinjaExtension)
        library = Path(self.get_ext_fullpath(ext.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        # Of each toolkit its own: ninja does not know that another nvcc stands in the same place.
        toolkit = f"-cuda-{self.environment.cuda.version}" if ext.cuda and self.environment.cuda else ""
        objects = Path("build", "ninja", f"{ext.name}-torch-{self.environment.torch.version}{toolkit}")
        objects.mkdir(parents=True, exist_ok=True)
        built = objects / library.name
        manifest = objects / "build.ninja"
        manifest.write_text(_manifest(ext, self.environment, objects, built), encoding="utf-8")
        _run_ninja(manifest)
        self.copy_file(str(built), str(library))

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

    def _infos(self) -> list[tuple[Path, Path]]:
        """Where the facts about the build are written, and where they are in the source tree."""
        in_source, built = self._get_inplace_equivalent(self.get_finalized_command("build_py"), self.extensions[0])
        return [(Path(built).with_name("_build_info.py"), Path(in_source).with_name("_build_info.py"))]

    def _build_info(self, cuda: cuda_toolkit.Toolkit | str) -> str:
        facts = {
            "VERSION": self.distribution.get_version(),
            "TORCH": self.environment.torch.version,
            "COMPILER": toolchain.describe(toolchain.compiler()),
            "CUDA": None if isinstance(cuda, str) else str(cuda),
            "CUDA_REASON": cuda if isinstance(cuda, str) else None,
        }
        lines = [f"{name} = {value!r}" for name, value in facts.items()]
        return "\n".join(['"""Written by the build."""', "", *lines, ""])


def _manifest(ext: NinjaExtension, built_with: Environment, objects: Path, library: Path) -> str:
    environment = [word for name in ("CPPFLAGS", "CXXFLAGS") for word in shlex.split(os.environ.get(name, ""))]
    cxx, cuda = toolchain.compiler(), built_with.cuda
    lines = [
        "ninja_required_version = 1.5",
        f"builddir = {_path(objects)}",
        f"cxx = {_words(cxx)}",
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
    if cuda:
        nvcc = _words([cuda.nvcc, "-ccbin", toolchain.program(cxx)])
        lines += [
            "",
            "rule kernel",
            f"  command = {nvcc} -MMD -MF $out.d $flags -c $in -o $out",
            "  deps = gcc",
            "  depfile = $out.d",
            "  description = nvcc $in",
        ]
    # -isystem: the warnings of other people's headers are not ours to fix.
    headers = ["-isystem", str(cuda.include)] if ext.cuda and cuda else []
    glue = ["-isystem", str(built_with.torch.include), "-isystem", str(toolchain.python_include())]
    outputs = []
    for unit in ext.units:
        output = objects / Path(unit.path).with_suffix(".cu.o" if unit.kernel else ".o")
        if unit.kernel:
            assert cuda is not None
            flags = ["-Xcompiler", "-fPIC", *shlex.split(unit.flags), *cuda.targets]
        else:
            flags = ["-fPIC", *shlex.split(unit.flags), *headers, *(glue if unit.torch else []), *environment]
        rule = "kernel" if unit.kernel else "compile"
        lines += ["", f"build {_path(output)}: {rule} {_path(unit.path)}", f"  flags = {_words(flags)}"]
        outputs.append(_path(output))
    # The linker script is an implicit input: changing it links again.
    lines += [
        "",
        f"build {_path(library)}: link {' '.join(outputs)} | {_path(HERE / 'exports.map')}",
        f"  flags = {_words(_link_flags(ext, built_with))}",
        "",
        f"default {_path(library)}",
        "",
    ]
    return "\n".join(lines)


def _link_flags(ext: NinjaExtension, built_with: Environment) -> list[str]:
    libraries = [f"-L{built_with.torch.lib}", *(f"-l{name}" for name in ext.libraries)]
    if ext.cuda and built_with.cuda:
        libraries += [str(built_with.cuda.runtime), "-ldl", "-lrt", "-lpthread"]
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
