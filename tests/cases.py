"""What the module tests share: the modules beside their nn.* twins, inputs for them, and one way to compare results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

import fusedrnn
from fusedrnn import reference

Results = Mapping[str, "Tensor | None"]

f32, f64 = torch.float32, torch.float64

# The largest error that is accepted, in units of the largest entry of the expected tensor.
TOLERANCE = {f64: 1e-13, f32: 2e-5}
SERVED_DTYPES = [f32, f64]

# No pre-activation of a float32 ReLU test may be closer to zero than this: float32 and float64 would otherwise disagree
# about which side of the kink it is on, and a gradient would jump by more than any tolerance.
RELU_MARGIN = 2e-6


class Kind:
    """A module of ours and its twin in torch.nn; `options` select a variant of the class (RNN with ReLU)."""

    def __init__(self, class_name: str, **options: Any):
        self.class_name = class_name
        self.options = options
        self.is_cell = class_name.endswith("Cell")
        self.states = ("h_0", "c_0") if class_name.startswith("LSTM") else ("h_0",)
        self.is_relu = options.get("nonlinearity") == "relu"

    def __repr__(self) -> str:
        return "-".join([self.class_name, *self.options.values()])

    def ours(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(fusedrnn, self.class_name)(*args, **self.options, **kwargs)

    def theirs(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(nn, self.class_name)(*args, **self.options, **kwargs)

    def pair(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Both modules with the same parameters."""
        theirs = self.theirs(*args, **kwargs)
        ours = self.ours(*args, **kwargs)
        ours.load_state_dict(theirs.state_dict(), strict=True)
        return ours, theirs

    def parameter(self, name: str) -> str:
        """The name of a parameter of the first layer: weight_hh, or weight_hh_l0."""
        return name if self.is_cell else f"{name}_l0"

    def hidden(self, *size: int, dtype: torch.dtype = f64, requires_grad: bool = False) -> Any:
        """A random state of the given size, (h, c) for an LSTM."""
        states = tuple(torch.randn(size, dtype=dtype, requires_grad=requires_grad) for _ in self.states)
        return states if len(states) == 2 else states[0]

    def example(
        self, module: Any, T: int = 5, B: int | None = 3, hx: bool = True, dtype: torch.dtype = f64
    ) -> tuple[Tensor, Any]:
        """Random input and state that require gradients; unbatched where B is None, cells take one step of it."""
        rows = () if B is None else (B,)
        if self.is_cell:
            size, state = (*rows, module.input_size), (*rows, module.hidden_size)
        else:
            batch_first = module.batch_first and B is not None
            size = (*rows, T, module.input_size) if batch_first else (T, *rows, module.input_size)
            state = (module.num_layers * (2 if module.bidirectional else 1), *rows, module.hidden_size)
        x = torch.randn(size, dtype=dtype, requires_grad=True)
        return x, self.hidden(*state, dtype=dtype, requires_grad=True) if hx else None


LAYERS = [Kind("LSTM"), Kind("GRU"), Kind("RNN", nonlinearity="tanh"), Kind("RNN", nonlinearity="relu")]
CELLS = [Kind("LSTMCell"), Kind("GRUCell"), Kind("RNNCell", nonlinearity="tanh"), Kind("RNNCell", nonlinearity="relu")]
MODULES = LAYERS + CELLS
LSTMS = [kind for kind in MODULES if "c_0" in kind.states]

each_module = pytest.mark.parametrize("kind", MODULES, ids=repr)
each_layer = pytest.mark.parametrize("kind", LAYERS, ids=repr)
each_cell = pytest.mark.parametrize("kind", CELLS, ids=repr)
each_dtype = pytest.mark.parametrize("dtype", SERVED_DTYPES, ids=str)

# Options of a layer that meet each other in few modules.
SOME_OPTIONS: list[dict[str, Any]] = [
    {},
    {"batch_first": True},
    {"bidirectional": True},
    {"num_layers": 2, "bias": False, "dropout": 0.3},
    {"num_layers": 2, "batch_first": True, "bidirectional": True},
]
each_module_with_some_options = pytest.mark.parametrize(
    "kind, options",
    [
        pytest.param(kind, options, id="-".join([repr(kind), *(f"{k}={v}" for k, v in options.items())]))
        for kind in MODULES
        for options in (SOME_OPTIONS[:1] if kind.is_cell else SOME_OPTIONS)
    ],
)


def everything(kind: Kind) -> dict[str, Any]:
    """All options that a module has, switched on."""
    if kind.is_cell:
        return {}
    return {"num_layers": 2, "batch_first": True, "dropout": 0.25, "bidirectional": True}


def failure(fails: Callable[[], Any]) -> Exception:
    """The error that a call raises."""
    with pytest.raises(Exception) as info:
        fails()
    return info.value


def on_meta(tree: Any) -> Any:
    """The same shapes without data."""
    return tree.to("meta") if isinstance(tree, Tensor) else tuple(map(on_meta, tree))


def flatten(tree: Any) -> list[Tensor]:
    """The tensors of a result or of a state, in order: y, h, c. Of a packed sequence those are its data."""
    if tree is None:
        return []
    if isinstance(tree, PackedSequence):
        return [tree.data]
    return [tree] if isinstance(tree, Tensor) else [leaf for branch in tree for leaf in flatten(branch)]


def call(module: nn.Module, x: Tensor, hx: Any = None) -> Any:
    return module(x) if hx is None else module(x, hx)


def outputs(module: nn.Module, x: Tensor, hx: Any = None) -> dict[str, Tensor]:
    """The outputs by name: y (of a layer), h_n and c_n (of an LSTM)."""
    names = ("y", "h_n", "c_n") if hasattr(module, "num_layers") else ("h_n", "c_n")
    return dict(zip(names, flatten(call(module, x, hx)), strict=False))


def cotangent(like: Tensor) -> Tensor:
    """A fixed random tensor of the shape of `like`, the same numbers for every dtype and device."""
    generator = torch.Generator().manual_seed(like.numel())
    return torch.randn(like.shape, generator=generator, dtype=f32).to(like)


def results(
    module: nn.Module,
    x: Tensor,
    hx: Any = None,
    seed: int | None = None,
    used: Iterable[str] = ("y", "h_n", "c_n"),
    lay: Callable[[Tensor], Tensor] = Tensor.contiguous,
) -> Results:
    """Outputs, and the gradient of every input and parameter that requires one.

    Args:
        seed: set before the call, for dropout.
        used: the outputs that the gradients are of.
        lay: gives the memory layout of the gradients that come in.
    """
    if seed is not None:
        torch.manual_seed(seed)
    out = outputs(module, x, hx)
    plain = getattr(module, "_orig_mod", module)  # of a compiled module
    leaves = {
        "x": flatten(x)[0],
        **dict(zip(("h_0", "c_0"), flatten(hx), strict=False)),
        **dict(plain.named_parameters()),
    }
    leaves = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    sources = [out[name] for name in used if name in out and out[name].requires_grad]
    grads: tuple[Tensor | None, ...] = ()
    if sources:
        cotangents = [lay(cotangent(source)) for source in sources]
        grads = torch.autograd.grad(sources, list(leaves.values()), cotangents, allow_unused=True)
    named = {f"grad of {name}": grad for name, grad in zip(leaves, grads, strict=False)}
    return {**{name: tensor.detach() for name, tensor in out.items()}, **named}


def close(name: Any, actual: Any, expected: Any, atol: float) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol, equal_nan=True, msg=lambda text: f"{name}: {text}")


def assert_same(
    ours: Results, theirs: Results, dtype: torch.dtype = f64, tolerance: float = 0.0, floor: float = 1e-3
) -> None:
    """The same tensors, each within tolerance (default: that of dtype); `theirs` may be of a wider dtype.

    The error is measured against the largest entry of the expected tensor, or against floor. NaN and infinity stand
    where theirs do.
    """
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        actual = ours[name]
        assert (actual is None) == (expected is None), f"{name}: expected {expected}, got {actual}"
        if actual is None or expected is None:
            continue
        assert actual.dtype == dtype, f"{name}: expected {dtype}, got {actual.dtype}"
        finite = expected[expected.isfinite()]
        scale = max(finite.abs().max().item(), floor) if finite.numel() else 1.0
        atol = (tolerance or TOLERANCE[dtype]) * scale
        close(name, actual.double(), expected.double(), atol)


def assert_bitwise(actual: Mapping[Any, Any], expected: Mapping[Any, Any]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        close(name, actual[name], tensor, 0.0)


def smallest_preactivation(module: Any, x: Tensor, hx: Any) -> float:
    """How close a ReLU layer comes to its kink: the smallest |W x + b| over layers, steps, rows and units."""
    smallest = [float("inf")]

    def step(x: Tensor, states: Any, w_ih: Tensor | None, w_hh: Tensor, b_ih: Any = None, b_hh: Any = None) -> Any:
        # x is projected already where w_ih is None.
        a = (x if w_ih is None else F.linear(x, w_ih, b_ih)) + F.linear(states[0], w_hh, b_hh)
        smallest.append(a.abs().min().item())
        return (a.relu(),)

    with torch.no_grad():
        if not hasattr(module, "num_layers"):
            step(x, (hx,), module.weight_ih, module.weight_hh, module.bias_ih, module.bias_hh)
        else:
            with mock.patch.dict(reference.STEPS, rnn_relu=step):
                reference.network("rnn_relu", x, (hx,), module.all_weights, module.bidirectional, module.batch_first)
    return min(smallest)


def sample(kind: Kind, size: tuple[int, ...], dtype: torch.dtype, **options: Any) -> tuple[Any, Any, Tensor, Any]:
    """Ours in dtype and nn.*'s in float64 with equal parameters and inputs (T, B, I, H), clear of the kink of ReLU.

    Everything is drawn in dtype, so that the float64 copy holds the same numbers.
    """
    T, B, *features = size
    for seed in range(100):
        torch.manual_seed(seed)
        ours, theirs = kind.pair(*features, dtype=dtype, **options)
        theirs = theirs.double()
        x, hx = kind.example(ours, T, B, dtype=dtype)
        if not (kind.is_relu and dtype == f32):
            break
        if smallest_preactivation(theirs, x.double(), hx.double()) > RELU_MARGIN:
            break
    else:
        raise AssertionError("no draw keeps clear of the kink: lower RELU_MARGIN or the size")
    return ours, theirs, x, hx


def widen(tree: Any) -> Any:
    """A copy in float64 that requires gradients where the original does."""
    if tree is None:
        return None
    if isinstance(tree, Tensor):
        return tree.detach().double().requires_grad_(tree.requires_grad)
    return tuple(widen(branch) for branch in tree)
