"""build_tools/cuda_toolkit.py: which toolkit builds the CUDA kernels, for which GPUs, or why none does."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BUILD_TOOLS = Path(__file__).parents[1] / "build_tools"
if not BUILD_TOOLS.exists():
    pytest.skip("no build_tools/ beside tests/: not a source tree", allow_module_level=True)
sys.path.insert(0, str(BUILD_TOOLS))

import cuda_toolkit  # noqa: E402
from cuda_toolkit import Toolkit  # noqa: E402
from target_torch import Torch  # noqa: E402

ALL = ("75", "80", "86", "89", "90", "100", "120+PTX")
SAYS = """#!/bin/sh
case "$1" in
--version) echo "Cuda compilation tools, release {version}, V{version}.88" ;;
--dryrun) echo '#$ TOP={root}/bin/..' >&2 ;;
--list-gpu-arch) printf 'compute_%s\\n' 75 80 86 87 89 90 {newest} ;;
esac
"""


def torch_with(cuda: str | None) -> Torch:
    return Torch(Path("/nowhere"), "2.14.1", cuda)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CUDA_HOME, a toolkit of CUDA 13.0 that knows all that the kernels are made for; no other, and no GPU."""
    for name in ("FUSEDRNN_CUDA", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)
    root = make(tmp_path / "cuda")
    monkeypatch.setenv("CUDA_HOME", str(root))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return root


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


def make(root: Path, version: str = "13.0", newest: str = "100 120") -> Path:
    script(root / "bin" / "nvcc", SAYS.format(version=version, root=root, newest=newest))
    for name in ("include/cuda_runtime.h", "lib64/libcudart_static.a"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    return root


def found(cuda: str | None = "13.0") -> Toolkit:
    toolkit = cuda_toolkit.find(torch_with(cuda))
    assert isinstance(toolkit, Toolkit), toolkit
    return toolkit


def test_a_toolkit_of_torchs_major_release_serves_every_architecture(home: Path) -> None:
    toolkit = found("13.2")
    assert (toolkit.version, toolkit.root, toolkit.architectures) == ("13.0", home.resolve(), ALL)
    assert toolkit.runtime == home.resolve() / "lib64/libcudart_static.a"
    assert toolkit.targets[-4:] == [
        *("-gencode", "arch=compute_100,code=sm_100"),
        *("-gencode", "arch=compute_120,code=[sm_120,compute_120]"),
    ]


def test_architectures_that_an_older_toolkit_does_not_know_are_left_out(home: Path) -> None:
    make(home, "12.6", newest="")
    assert found("12.8").architectures == ("75", "80", "86", "89", "90+PTX")


def test_the_gpus_that_are_here_are_served(home: Path, tmp_path: Path) -> None:
    script(tmp_path / "bin" / "nvidia-smi", "#!/bin/sh\nprintf '9.0\\n8.6\\n9.0\\n'\n")
    assert found().architectures == ("86", "90")


def test_without_a_driver_nvidia_smi_tells_nothing(home: Path, tmp_path: Path) -> None:
    script(tmp_path / "bin" / "nvidia-smi", "#!/bin/sh\necho NVIDIA-SMI has failed\nexit 9\n")
    assert found().architectures == ALL


@pytest.mark.parametrize(
    "chosen, architectures",
    [("9.0", ("90",)), ("8.0;9.0a", ("80", "90a")), ("7.5 8.6, 12.0+PTX", ("75", "86", "120+PTX"))],
)
def test_architectures_are_chosen_as_for_torchs_own_extensions(
    home: Path, monkeypatch: pytest.MonkeyPatch, chosen: str, architectures: tuple[str, ...]
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", chosen)
    assert found().architectures == architectures


@pytest.mark.parametrize("chosen, complaint", [("hopper", "has 'hopper': expected numbers"), ("7.0", "7.5 or newer")])
def test_architectures_that_cannot_be(home: Path, monkeypatch: pytest.MonkeyPatch, chosen: str, complaint: str) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", chosen)
    with pytest.raises(SystemExit, match=complaint):
        found()


def break_nothing(home: Path) -> None:
    pass


REASONS = {
    "CPU torch": (None, break_nothing, "torch 2.14.1 is built without CUDA"),
    "no nvcc": ("13.0", lambda home: (home / "bin/nvcc").unlink(), "no nvcc"),
    "another major release": ("12.8", break_nothing, "is of CUDA 13.0, torch 2.14.1 of CUDA 12.8"),
    "no headers": ("13.0", lambda home: (home / "include/cuda_runtime.h").unlink(), "has no headers of the runtime"),
    "no runtime": ("13.0", lambda home: (home / "lib64/libcudart_static.a").unlink(), "has no libcudart_static.a"),
    "no nvcc but its name": (
        "13.0",
        lambda home: script(home / "bin/nvcc", "#!/bin/sh\n"),
        "does not say which release it is",
    ),
}


@pytest.mark.parametrize("name", REASONS)
def test_why_there_are_none_is_said_and_fatal_only_where_they_are_asked_for(
    home: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    cuda, break_it, reason = REASONS[name]
    break_it(home)
    monkeypatch.setattr(cuda_toolkit, "GUESS", "/nonexistent")
    said = cuda_toolkit.find(torch_with(cuda))
    assert isinstance(said, str) and reason in said
    monkeypatch.setenv("FUSEDRNN_CUDA", "1")
    with pytest.raises(SystemExit, match="asks for CUDA kernels, which cannot be built here: "):
        cuda_toolkit.find(torch_with(cuda))


def test_kernels_that_are_not_wanted(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEDRNN_CUDA", "0")
    assert cuda_toolkit.find(torch_with("13.0")) == "FUSEDRNN_CUDA=0 at build time"
    monkeypatch.setenv("FUSEDRNN_CUDA", "yes")
    with pytest.raises(SystemExit, match="expected auto, 0 or 1"):
        cuda_toolkit.find(torch_with("13.0"))
