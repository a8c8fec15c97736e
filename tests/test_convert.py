"""fuse and unfuse: a model answers, trains and keeps all it has."""

from __future__ import annotations

import copy
import io
import warnings
from typing import Any

import pytest
import torch
from cases import MODULES, Kind, assert_bitwise, each_module, everything, f64, flatten
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from user_models import USER_MODELS, Tagger

import fusedrnn
from fusedrnn import cuda

RECURRENT = tuple(getattr(nn, kind.class_name) for kind in MODULES)
FUSED = tuple(getattr(fusedrnn, kind.class_name) for kind in MODULES)

each_model = pytest.mark.parametrize("name", USER_MODELS)


def made(name: str) -> tuple[nn.Module, Tensor]:
    make, batch = USER_MODELS[name]
    return make().double(), batch()


def classes(model: nn.Module, among: tuple[type, ...]) -> int:
    return sum(type(module) in among for module in model.modules())


def trained(model: nn.Module, batch: Tensor, steps: int = 3) -> dict[str, Tensor]:
    """Outputs and gradients of each step, and the parameters after them, from one seed."""
    torch.manual_seed(7)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    seen = {}
    for step in range(steps):
        out = model(batch)
        optimizer.zero_grad()
        out.sin().sum().backward()
        seen[f"output {step}"] = out.detach().clone()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            seen[f"grad {step} of {name}"] = parameter.grad.clone()
        optimizer.step()
    return {**seen, **{f"after: {name}": p.detach().clone() for name, p in model.named_parameters()}}


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=1e-9, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


@each_model
def test_a_fused_model_trains_as_it_did_before(name: str) -> None:
    """Same outputs, gradients and parameters after three steps of Adam, with dropout from one seed."""
    plain, batch = made(name)
    fused = copy.deepcopy(plain) if name != "weight-drop" else made(name)[0]
    fused.load_state_dict(plain.state_dict())
    assert fusedrnn.fuse(fused) is fused
    assert classes(fused, RECURRENT) == 0 and classes(fused, FUSED) == classes(plain, RECURRENT) > 0
    assert_close(trained(fused, batch), trained(plain, batch))


@each_model
def test_an_unfused_model_is_what_it_was(name: str) -> None:
    model, batch = made(name)
    model.eval()
    expected = model(batch)
    assert torch.equal(fusedrnn.unfuse(fusedrnn.fuse(model))(batch), expected)
    assert classes(model, FUSED) == 0
    assert {type(m) for m in model.modules()} == {type(m) for m in made(name)[0].modules()}


@each_model
def test_fusing_twice_is_fusing_once(name: str) -> None:
    model, batch = made(name)
    model.eval()
    once = fusedrnn.fuse(model)(batch)
    assert torch.equal(fusedrnn.fuse(model)(batch), once)


def state(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name != "recompute"}


@each_module
def test_the_module_itself_stays_the_object_it_was_with_all_it_has(kind: Kind) -> None:
    module = kind.theirs(3, 4, dtype=f64, **everything(kind)).eval()
    calls: list[str] = []
    module.register_forward_hook(lambda *_: calls.append("forward"))
    module.register_forward_pre_hook(lambda *_: calls.append("before"))
    module.register_full_backward_hook(lambda *_: calls.append("backward"))
    module.register_buffer("extra", torch.ones(2))
    module.note = "a user's own"
    next(module.parameters()).requires_grad_(False)
    before, parameters = state(module), dict(module.named_parameters())
    x, hx = kind.example(module)
    expected = flatten(module(x, hx))
    assert fusedrnn.fuse(module) is module
    assert isinstance(module, getattr(fusedrnn, kind.class_name))
    assert state(module) == before
    assert all(parameter is parameters[name] for name, parameter in module.named_parameters())
    actual = flatten(module(x, hx))
    actual[0].sum().backward()
    assert calls == ["before", "forward"] * 2 + ["backward"]
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    fusedrnn.unfuse(module)
    assert type(module) is getattr(nn, kind.class_name) and vars(module).keys() == before.keys()
    assert_bitwise(dict(enumerate(flatten(module(x, hx)))), dict(enumerate(expected)))


@each_module
def test_an_unfused_module_that_was_made_fused_is_whole(kind: Kind) -> None:
    ours = kind.ours(3, 4, dtype=f64, **everything(kind)).eval()
    theirs = kind.theirs(3, 4, dtype=f64, **everything(kind))
    plain = fusedrnn.unfuse(copy.deepcopy(ours))
    assert type(plain) is type(theirs) and vars(plain).keys() == vars(theirs).keys()
    x, hx = kind.example(ours)
    for a, b in zip(flatten(plain(x, hx)), flatten(ours(x, hx)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_an_optimizer_made_before_fusing_trains_the_fused_model() -> None:
    model, batch = made("tagger")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    fusedrnn.fuse(model)
    before = copy.deepcopy(model.state_dict())
    model(batch).sum().backward()
    optimizer.step()
    assert all(not torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("way", ["weight_norm", "spectral_norm", "orthogonal"])
def test_parametrizations_survive_there_and_back(way: str) -> None:
    model, batch = made("tagger")
    model.eval()
    getattr(parametrizations, way)(model.lstm, "weight_hh_l1")
    expected = model(batch)
    fusedrnn.fuse(model)
    assert isinstance(model.lstm, fusedrnn.LSTM) and parametrize.is_parametrized(model.lstm, "weight_hh_l1")
    torch.testing.assert_close(model(batch), expected)
    fusedrnn.unfuse(model)
    assert isinstance(model.lstm, nn.LSTM) and parametrize.is_parametrized(model.lstm, "weight_hh_l1")
    torch.testing.assert_close(model(batch), expected)
    fusedrnn.fuse(model)
    parametrize.remove_parametrizations(model.lstm, "weight_hh_l1")
    assert type(model.lstm) is fusedrnn.LSTM
    torch.testing.assert_close(model(batch), expected)


class ResidualLSTM(nn.LSTM):
    def forward(self, input, hx=None):
        y, hx = super().forward(input, hx)
        return y + input, hx


class ResidualFusedGRU(fusedrnn.GRU):
    def forward(self, input, hx=None):
        y, hx = super().forward(input, hx)
        return y + input, hx


def test_what_cannot_be_fused_is_named_left_alone_and_explained() -> None:
    patched = nn.GRU(3, 3)
    patched.forward = lambda x: (x, None)  # type: ignore[method-assign]
    model = nn.ModuleDict(
        {
            "derived": nn.Sequential(ResidualLSTM(3, 3)),
            "patched": patched,
            "scripted": torch.jit.script(nn.LSTM(3, 3)),
            "complex": nn.RNN(3, 3, dtype=torch.complex64),
            "plain": nn.LSTM(3, 3),
        }
    )
    before = [type(module) for module in model.values()]
    with pytest.warns(UserWarning) as caught:
        fusedrnn.fuse(model)
    (warning,) = caught
    assert warning.filename == __file__
    lines = str(warning.message).splitlines()[1:]
    reasons = {
        "derived.0": r"derive it from fusedrnn.LSTM",
        "patched": "forward of its own",
        "scripted": "TorchScript",
        "complex": "complex64",
    }
    assert len(lines) == len(reasons)
    for line, (name, reason) in zip(lines, reasons.items(), strict=True):
        assert line.strip().startswith(f"{name} (") and reason in line
    assert type(model["derived"][0]) is ResidualLSTM
    assert [type(module) for module in model.values()][:-1] == before[:-1]
    assert type(model["plain"]) is fusedrnn.LSTM


def test_what_cannot_be_unfused_is_named() -> None:
    model = nn.Sequential(ResidualFusedGRU(3, 3), fusedrnn.GRU(3, 3))
    with pytest.warns(UserWarning, match=r"0 \(ResidualFusedGRU\): .*derive it from nn\.GRU"):
        fusedrnn.unfuse(model)
    assert type(model[0]) is ResidualFusedGRU and type(model[1]) is nn.GRU


def test_a_layer_that_drops_weights_stays_fused_until_it_no_longer_does() -> None:
    layer = fusedrnn.LSTM(3, 4, weight_drop=0.5)
    with pytest.warns(UserWarning, match=r"the model itself \(LSTM\): it drops recurrent weights .*weight_drop"):
        assert type(fusedrnn.unfuse(layer)) is fusedrnn.LSTM
    layer.weight_drop = 0.0
    assert type(fusedrnn.unfuse(layer)) is nn.LSTM
    assert type(fusedrnn.fuse(layer)) is fusedrnn.LSTM
    layer(torch.randn(5, 2, 3))


def test_a_model_on_a_device_without_kernels_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.LSTM(3, 4)
    monkeypatch.setattr(cuda, "unavailable", "torch is built without CUDA")
    monkeypatch.setattr(fusedrnn.convert, "_tensors", lambda _: [FakeCudaTensor()])
    with pytest.warns(UserWarning, match=r"the model itself \(LSTM\): .*cuda.*no CUDA kernels here"):
        assert type(fusedrnn.fuse(module)) is nn.LSTM


class FakeCudaTensor:
    dtype, device, is_cuda = torch.float32, torch.device("cuda"), True


def test_a_model_without_recurrent_layers_is_returned_in_silence() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fusedrnn.fuse(model) is model and fusedrnn.unfuse(model) is model


# ----------------------------------------------------------------------------------------- what unfuse is for


def unfused_tagger() -> tuple[nn.Module, Tensor, Tensor]:
    model = fusedrnn.fuse(Tagger()).eval()
    batch = USER_MODELS["tagger"][1]()
    return fusedrnn.unfuse(model), batch, model(batch)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.*is deprecated")
@pytest.mark.parametrize("way", ["trace", "script"])
def test_an_unfused_model_goes_through_torchscript(way: str) -> None:
    model, batch, expected = unfused_tagger()
    scripted = torch.jit.trace(model, batch) if way == "trace" else torch.jit.script(model)
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    torch.testing.assert_close(torch.jit.load(file)(batch), expected)


@pytest.mark.filterwarnings("ignore:The tensor attributes .* were assigned during export")
def test_an_unfused_model_goes_through_export() -> None:
    model, batch, expected = unfused_tagger()
    program = torch.export.export(model, (batch,))
    torch.testing.assert_close(program.module()(batch), expected)


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.*is deprecated",
    "ignore::torch.jit.TracerWarning",
    "ignore:Exporting a model to ONNX with a batch_size",
    "ignore:The tensor attributes .* were assigned during export",
)
@pytest.mark.parametrize("dynamo", [False, True], ids=["by-trace", "by-export"])
def test_an_unfused_model_goes_through_onnx(dynamo: bool) -> None:
    """Its outputs under ONNX Runtime are those of torch."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, batch, expected = unfused_tagger()
    file = io.BytesIO()
    if dynamo:
        torch.onnx.export(model, (batch,), dynamo=True, verbose=False).save(file)
    else:
        torch.onnx.export(model, (batch,), file, dynamo=False)
    session = runtime.InferenceSession(file.getvalue())
    (actual,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
    torch.testing.assert_close(torch.from_numpy(actual), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif("fbgemm" not in torch.backends.quantized.supported_engines, reason="no quantized kernels here")
@pytest.mark.filterwarnings(
    "ignore:.*torch.ao.quantization is deprecated", "ignore:.*TypedStorage", "ignore:torch.quantize_per_tensor"
)
def test_an_unfused_model_is_quantized_by_torch() -> None:
    model, batch, expected = unfused_tagger()
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.LSTM, nn.Linear}, dtype=torch.qint8)
    assert type(quantized.lstm) is torch.ao.nn.quantized.dynamic.LSTM
    assert (quantized(batch) - expected).abs().max() < 0.05 * expected.abs().max()
