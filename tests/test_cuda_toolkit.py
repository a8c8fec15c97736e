"""Which nvcc builds the CUDA kernels and for which architectures, with scripts in place of nvcc and nvidia-smi."""

from __future__ import annotations

import platform
import re
import sys
from pathlib import Path

import pytest

BUILD_TOOLS = Path(__file__).parents[1] / "build_tools"
if not BUILD_TOOLS.exists():
    pytest.skip("no build_tools/ beside tests/: not a source tree", allow_module_level=True)
sys.path.insert(0, str(BUILD_TOOLS))

import cuda_toolkit  # noqa: E402
import toolchain  # noqa: E402
from target_torch import Torch  # noqa: E402

if sys.platform != "linux":
    pytest.skip("CUDA kernels are built on Linux only", allow_module_level=True)

TORCH = Torch(Path("torch"), "2.14.1+cu130", "13.0")
NVCC = """#!/bin/sh
case "$*" in
  *--version*) echo "Cuda compilation tools, release {release}, V{release}.88" ;;
  *--dryrun*) echo "#$ TOP={root}" ;;
  *--list-gpu-arch*) printf 'compute_75\\ncompute_80\\ncompute_86\\ncompute_90\\ncompute_100\\n' ;;
esac
"""
ALL = ("75", "80", "86", "90", "100+PTX")
PACKAGED = f"targets/{'sbsa' if platform.machine() == 'aarch64' else platform.machine()}-linux"


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def toolkit(root: Path, release: str = "13.0", include: str = "include", lib: str = "lib64") -> Path:
    script(root / "bin/nvcc", NVCC.format(release=release, root=root))
    for file in (root / include / "cuda_runtime.h", root / lib / "libcudart_static.a"):
        file.parent.mkdir(parents=True)
        file.touch()
    return root


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH, on a machine without a GPU and a toolkit."""
    path = tmp_path / "tools"
    path.mkdir()
    monkeypatch.setenv("PATH", str(path))
    for name in ("CUDA_HOME", "FUSEDRNN_CUDA", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cuda_toolkit, "_GUESS", tmp_path / "guess")
    return path


def gpus(tools: Path, *capabilities: str) -> None:
    script(tools / "nvidia-smi", "#!/bin/sh\n" + "".join(f"echo {capability}\n" for capability in capabilities))


def found() -> cuda_toolkit.Toolkit:
    answer = cuda_toolkit.find(TORCH)
    assert isinstance(answer, cuda_toolkit.Toolkit), answer
    return answer


def test_a_choice_comes_before_path_and_path_before_a_guess(tools, tmp_path, monkeypatch):
    assert cuda_toolkit.find(TORCH) == f"no nvcc in CUDA_HOME, on PATH or in {tmp_path}/guess"
    toolkit(tmp_path / "guess", "12.8")
    assert cuda_toolkit.find(TORCH) == (f"{tmp_path}/guess/bin/nvcc is of CUDA 12.8, torch 2.14.1+cu130 of CUDA 13.0")
    script(tools / "nvcc", NVCC.format(release="13.1", root=toolkit(tmp_path / "path")))
    assert found().root == tmp_path / "path"
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path / "home")))
    assert found().root == tmp_path / "home"


def test_folders_of_packages(tools, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path, include=f"{PACKAGED}/include", lib=f"{PACKAGED}/lib")))
    assert found().include == tmp_path / PACKAGED / "include"
    assert found().runtime == tmp_path / PACKAGED / "lib/libcudart_static.a"


@pytest.mark.parametrize(
    "capabilities, architectures",
    [
        ((), ALL),
        (("[N/A]",), ALL),
        (("9.0", "8.6", "9.0"), ("86", "90")),
        (("6.1", "8.6"), ("86",)),
        (("9.0", "12.0"), ALL),  # nvcc does not know the second
    ],
    ids=str,
)
def test_architectures_of_the_gpus_that_are_here(tools, tmp_path, monkeypatch, capabilities, architectures):
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path)))
    gpus(tools, *capabilities)
    assert found().architectures == architectures


def test_gpus_that_are_too_old_stop_no_build(tools, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path)))
    gpus(tools, "6.1", "7.0")
    why = "they need a GPU of compute capability 7.5 or newer, those here have 6.1, 7.0"
    assert cuda_toolkit.find(TORCH) == why
    monkeypatch.setenv("FUSEDRNN_CUDA", "1")
    with pytest.raises(SystemExit, match=why):
        cuda_toolkit.find(TORCH)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0")
    assert found().architectures == ("80",)


@pytest.mark.parametrize(
    "chosen, architectures",
    [
        ("8.0;9.0+PTX", ("80", "90+PTX")),
        (" 8.0 8.6, 12.0a; ", ("80", "86", "120a")),
        ("10.0f+PTX", ("100f+PTX",)),
        ("Turing;Hopper", ("75+PTX", "90+PTX")),
        ("Ampere", ("80", "86+PTX")),
        (" ", ALL),
    ],
)
def test_architectures_that_are_chosen(tools, tmp_path, monkeypatch, chosen, architectures):
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path)))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", chosen)
    assert found().architectures == architectures


@pytest.mark.parametrize(
    "chosen, says", [("7.0;8.0", "has 7.0: its kernels need 7.5"), ("Volta", "has 'Volta'"), ("90", "has '90'")]
)
def test_architectures_that_cannot_be(tools, tmp_path, monkeypatch, chosen, says):
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path)))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", chosen)
    with pytest.raises(SystemExit, match=says):
        cuda_toolkit.find(TORCH)


@pytest.mark.parametrize("command", ["g++-12", "ccache g++-12", "g++-12 -m64 -pthread", "ccache g++-12 -m64"])
def test_the_compiler_that_nvcc_is_given(command):
    assert toolchain.program(command.split()) == "g++-12"


REASONS = {
    "CPU torch": (None, lambda root: None, r"torch 2.14.1\+cu130 is built without CUDA"),
    "no headers": ("13.0", lambda root: (root / "include/cuda_runtime.h").unlink(), "has no headers of the runtime"),
    "no runtime": ("13.0", lambda root: (root / "lib64/libcudart_static.a").unlink(), "has no libcudart_static.a"),
    "no release": ("13.0", lambda root: script(root / "bin/nvcc", "#!/bin/sh\n"), "does not say which release it is"),
}


@pytest.mark.parametrize("name", REASONS)
def test_why_there_are_none_is_said_and_ends_the_build_only_where_they_are_asked_for(
    tools, tmp_path, monkeypatch, name
):
    cuda, break_it, reason = REASONS[name]
    torch = Torch(Path("torch"), "2.14.1+cu130", cuda)
    root = toolkit(tmp_path / "home")
    monkeypatch.setenv("CUDA_HOME", str(root))
    break_it(root)
    said = cuda_toolkit.find(torch)
    assert isinstance(said, str) and re.search(reason, said)
    monkeypatch.setenv("FUSEDRNN_CUDA", "1")
    with pytest.raises(SystemExit, match=f"asks for CUDA kernels, which cannot be built here: .*{reason}"):
        cuda_toolkit.find(torch)


def test_kernels_that_are_not_wanted(tools, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path / "home")))
    monkeypatch.setenv("FUSEDRNN_CUDA", "0")
    assert cuda_toolkit.find(TORCH) == "FUSEDRNN_CUDA=0 at build time"
    monkeypatch.setenv("FUSEDRNN_CUDA", "yes")
    with pytest.raises(SystemExit, match="FUSEDRNN_CUDA is 'yes': expected auto, 0 or 1"):
        cuda_toolkit.find(TORCH)
