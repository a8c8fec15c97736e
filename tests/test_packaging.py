"""What is installed, and that every way to install it works: those tests are marked `install` and run in CI."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest
import torch

import fusedrnn
from fusedrnn.info import info

SOURCE = Path(__file__).parents[1]
LIBRARY = next(Path(fusedrnn.__file__).parent.glob("_C.*.so"))

needs_binutils = pytest.mark.skipif(shutil.which("nm") is None or shutil.which("readelf") is None, reason="no binutils")


def output(*command: str | Path, **kwargs) -> str:
    """What a command prints; if it fails, that is in the report."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **kwargs)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_metadata() -> None:
    metadata = distribution("fusedrnn").metadata
    assert metadata["License-Expression"] == "BSD-3-Clause"
    assert metadata["Requires-Python"] == ">=3.10"
    required = [line for line in metadata.get_all("Requires-Dist") or [] if "extra" not in line]
    assert required == ["torch>=2.11", "numpy"]
    (script,) = distribution("fusedrnn").entry_points.select(group="console_scripts")
    assert (script.name, script.value) == ("fusedrnn", "fusedrnn.lm.cli:main")
    assert (Path(fusedrnn.__file__).parent / "py.typed").exists()


def test_one_build_serves_every_python() -> None:
    assert LIBRARY.name.startswith("_C.abi3")
    assert "Tag: cp310-abi3-" in (distribution("fusedrnn").read_text("WHEEL") or "")


@needs_binutils
def test_library_exports_nothing_but_its_module() -> None:
    symbols = output("nm", "--dynamic", "--defined-only", LIBRARY).split()
    assert symbols[2::3] == ["PyInit__C"]


@needs_binutils
def test_library_links_no_python() -> None:
    needed = output("readelf", "--dynamic", "--wide", LIBRARY)
    assert "libtorch_cpu" in needed
    assert "libpython" not in needed
    assert "libtorch_python" not in needed
    assert "RUNPATH" not in needed  # torch is wherever the environment has it


def test_info_is_printed() -> None:
    text = output(sys.executable, "-m", "fusedrnn.info")
    assert [line.split(":")[0] for line in text.splitlines()] == [
        "fusedrnn",
        "torch",
        "Python",
        "compiler",
        "CPU kernels",
        "CUDA kernels",
    ]


def test_info_values() -> None:
    facts = info()
    assert facts.fusedrnn == distribution("fusedrnn").version
    assert facts.torch == torch.__version__
    assert facts.threads == torch.get_num_threads()
    assert (facts.cuda_kernels is None) == (facts.no_cuda_reason is not None)


# --- Installing ---------------------------------------------------------------------------------------------------

PIPS = ["pip==23.2.1", "pip"]
TORCH = "torch==" + torch.__version__.split("+")[0]


class Environment:
    """A virtual environment in which the shell's own settings are not seen."""

    def __init__(self, path: Path, *packages: str) -> None:
        output(sys.executable, "-m", "venv", path)
        self.python = path / "bin" / "python"
        self.home = path
        if packages:
            self.pip("install", *packages)

    def run(self, *command: str | Path, cwd: Path | None = None, **variables: str) -> str:
        return output(*command, cwd=cwd or self.home, env=self.variables(variables))

    def pip(self, *arguments: str | Path, **variables: str) -> str:
        return self.run(self.python, "-m", "pip", *arguments, **variables)

    def complaint(self, *arguments: str | Path, **variables: str) -> str:
        """What pip prints when it fails, which it must, as a user would read it: without one of our tracebacks."""
        command = [self.python, "-m", "pip", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=self.variables(variables))
        assert done.returncode != 0
        assert "Traceback" not in done.stdout + done.stderr
        return done.stdout + done.stderr

    def variables(self, extra: dict[str, str]) -> dict[str, str]:
        hidden = ("PYTHON", "FUSEDRNN_", "VIRTUAL_ENV", "CONDA_", "CXX", "CPPFLAGS", "LDFLAGS")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        # What is tested is the build, not how fast the kernels are.
        return {**inherited, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "CXXFLAGS": "-O0", **extra}

    def check(self) -> None:
        """The installed package loads, knows the torch it was built against, and can be removed."""
        text = self.run(self.python, "-m", "fusedrnn.info")
        self.pip("uninstall", "--yes", "fusedrnn")
        assert f"(built against {torch.__version__})" in text


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source tree, so that these builds leave the real one alone; its objects serve all tests."""
    copy = tmp_path_factory.mktemp("source") / "fusedrnn"
    generated = (".*", "build", "dist", "runs", "*.so", "_build_info.py", "*.egg-info", "__pycache__")
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns(*generated))
    return copy


@pytest.fixture(scope="module")
def with_torch(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("with_torch"), TORCH, "numpy", "build", "ninja", "setuptools>=77", "uv")


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    environment = Environment(tmp_path_factory.mktemp("without_torch"), "ninja", "setuptools>=77")
    yield environment
    assert "torch" not in environment.pip("list"), "a test of what happens without torch was given one"


@pytest.mark.install
class TestInstall:
    @pytest.mark.parametrize("pip", PIPS)
    @pytest.mark.parametrize("editable", [(), ("--editable",)], ids=["regular", "editable"])
    @pytest.mark.parametrize("isolation", [(), ("--no-build-isolation",)], ids=["isolated", "not_isolated"])
    def test_pip(self, with_torch: Environment, project: Path, pip: str, editable: tuple, isolation: tuple) -> None:
        with_torch.pip("install", "--upgrade", pip)
        with_torch.pip("install", *isolation, *editable, project)
        with_torch.check()

    def test_pip_brings_torch_where_there_is_none(self, tmp_path: Path, project: Path) -> None:
        environment = Environment(tmp_path / "environment")
        constraints = tmp_path / "constraints.txt"
        constraints.write_text(TORCH + "\n", encoding="utf-8")
        files = {"PIP_CONSTRAINT": str(constraints), "PIP_BUILD_CONSTRAINT": str(constraints)}
        environment.pip("install", project, **files)
        environment.check()

    def test_uv(self, with_torch: Environment, project: Path) -> None:
        # From the source tree: there uv reads the settings that make it build in the target environment.
        with_torch.run(with_torch.home / "bin/uv", "pip", "install", "--python", with_torch.python, ".", cwd=project)
        with_torch.check()

    def test_wheel_from_sdist(self, with_torch: Environment, project: Path, tmp_path: Path) -> None:
        override = {} if sys.version_info >= (3, 11) else {"FUSEDRNN_TORCH_PYTHON": str(with_torch.python)}
        with_torch.run(with_torch.python, "-m", "build", "--outdir", tmp_path, project, **override)
        (sdist,), (wheel,) = tmp_path.glob("*.tar.gz"), tmp_path.glob("*.whl")
        with tarfile.open(sdist) as archive:
            packed = {name.split("/", 1)[-1] for name in archive.getnames()}
        assert {"Makefile", "CHANGELOG.md", "LICENSE", "csrc/cpu/isa_avx512.cpp", "tests/conftest.py"} <= packed
        with zipfile.ZipFile(wheel) as archive:
            installed = {name for name in archive.namelist() if ".dist-info/" not in name}
        kinds = (".py", ".pyi", ".typed")
        sources = {str(path.relative_to(project)) for path in project.glob("fusedrnn/**/*.*") if path.suffix in kinds}
        cuda = {"fusedrnn/_C_cuda.abi3.so"} if torch.version.cuda and shutil.which("nvcc") else set()
        assert installed == sources | cuda | {"fusedrnn/_C.abi3.so", "fusedrnn/_build_info.py"}
        with_torch.pip("install", wheel)
        with_torch.check()

    @pytest.mark.parametrize("pip", PIPS)
    def test_no_compiler(self, without_torch: Environment, project: Path, pip: str) -> None:
        without_torch.pip("install", "--upgrade", pip)
        text = without_torch.complaint("install", project, PATH=str(without_torch.home / "bin"))
        assert "fusedrnn: no C++ compiler was found: install one" in text
        text = without_torch.complaint("install", project, CXX="/nonexistent")
        assert "fusedrnn: CXX is set to '/nonexistent', which cannot be run" in text

    def test_no_torch_without_isolation(self, without_torch: Environment, project: Path) -> None:
        text = without_torch.complaint("install", "--no-build-isolation", "--no-deps", project)
        assert "fusedrnn: PyTorch 2.11 or newer is needed to build and none was found: run `pip install torch`" in text

    def test_old_setuptools_without_isolation(self, tmp_path: Path, project: Path) -> None:
        environment = Environment(tmp_path, "setuptools==65.5.0", "wheel")
        text = environment.complaint("install", "--no-build-isolation", "--no-deps", project)
        assert "fusedrnn: setuptools 77 or newer is needed to build: run `pip install" in text

    @pytest.mark.skipif(torch.version.cuda is not None, reason="torch has CUDA")
    def test_cuda_kernels_that_cannot_be_built(self, with_torch: Environment, project: Path) -> None:
        text = with_torch.complaint("install", "--no-build-isolation", project, FUSEDRNN_CUDA="1")
        version = torch.__version__
        assert f"fusedrnn: FUSEDRNN_CUDA=1 asks for CUDA kernels, which cannot be built here: torch {version}" in text
        text = with_torch.complaint("install", "--no-build-isolation", project, FUSEDRNN_CUDA="yes")
        assert "fusedrnn: FUSEDRNN_CUDA is 'yes': expected auto, 0 or 1." in text

    def test_compiler_error(self, with_torch: Environment, project: Path) -> None:
        text = with_torch.complaint("install", "--no-build-isolation", project, CXXFLAGS="-include nonexistent.h")
        assert "nonexistent.h: No such file or directory" in text
        assert "fusedrnn: compiling failed" in text
