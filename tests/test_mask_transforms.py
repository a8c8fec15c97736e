"""Masks (resets, lengths, packed sequences, detach_every, c of every step) through torch's machinery.

opcheck, finite differences, torch.func, torch.compile and torch.export: what test_ops, test_autograd and
test_transforms show of layers without masks.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import LAYERS, Kind, assert_bitwise, assert_same, close, each_layer, f64, flatten
from mask_cases import by_reference, drawn_packed, drawn_resets, gradients, leaves_of
from op_cases import Arguments, arguments
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import gradcheck, gradgradcheck
from torch.export import Dim
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.utils.rnn import PackedSequence

import fusedrnn
from fusedrnn import functional
from fusedrnn.autograd import FUNCTIONS, reference_layer
from fusedrnn.ops import BACKWARD, CELLS, FORWARD, SAVING, Masks

each_cell = pytest.mark.parametrize("cell", CELLS)
each_path = pytest.mark.parametrize("path", ["function", "operator"])
compiles = pytest.mark.usefixtures("fresh_dynamo")

# ---------------------------------------------------------------------------------------------------- the operators

T, B, I, H = 3, 2, 2, 3
RESETS = torch.tensor([[False, True], [True, False], [False, False]])
MASKS = {
    "resets": Masks(resets=RESETS),
    "lengths": Masks(lengths=torch.tensor([1, 3])),
    "packed": Masks(batch_sizes=torch.tensor([2, 1, 1])),
    "lengths-resets": Masks(lengths=torch.tensor([3, 0]), resets=RESETS),
    "packed-resets": Masks(batch_sizes=torch.tensor([2, 2, 1]), resets=RESETS.flatten()[:5]),
}
TRUNCATED = {
    "detach": Masks(detach_every=2),
    "lengths-resets-detach": MASKS["lengths-resets"]._replace(detach_every=1),
    "packed-resets-detach": MASKS["packed-resets"]._replace(detach_every=2),
}
each_mask = pytest.mark.parametrize("name", MASKS)
each_truncation = pytest.mark.parametrize("name", TRUNCATED)


def masked(cell: str, name: str, requires_grad: bool = True, hx: bool = True) -> tuple[Arguments, Masks]:
    masks = (MASKS | TRUNCATED)[name]
    args = arguments(cell, (T, B, I, H), requires_grad=requires_grad)
    if masks.batch_sizes is not None:
        args = args._replace(x=torch.randn(int(masks.batch_sizes.sum()), I, dtype=f64, requires_grad=requires_grad))
    return args if hx else args._replace(h0=None, c0=None), masks  # type: ignore[arg-type]


def runner(path: str, cell: str, args: Arguments, masks: Masks, reverse: bool, recompute: bool = False) -> Any:
    """y, the final states and c of every step as a function of the tensors that are given."""

    def run(*given: Tensor) -> tuple[Tensor, ...]:
        rest = iter(given)
        full = [None if t is None else next(rest) for t in args]
        if path == "reference":
            states = tuple(s for s in full[1:3] if s is not None)
            return reference_layer(cell, full[0], states, full[3:], None, False, reverse, masks, True)
        flags = None, False, reverse, recompute, *masks
        out = SAVING[cell](*full, *flags) if path == "operator" else FUNCTIONS[cell].apply(cell, *full, *flags)
        return (*out[: 1 + CELLS[cell].states], *([out[4]] if cell == "lstm" else []))

    return run


@each_path
@each_mask
@each_cell
def test_both_orders_agree_with_finite_differences(cell: str, name: str, path: str) -> None:
    for reverse, recompute in ((False, True), (True, False)):
        args, masks = masked(cell, name)
        run = runner(path, cell, args, masks, reverse, recompute)
        assert gradcheck(run, args.given(), fast_mode=recompute)
        assert gradgradcheck(run, args.given(), fast_mode=True)


@each_path
@each_truncation
@each_cell
def test_both_orders_of_a_truncated_gradient_are_those_of_detached_states(cell: str, name: str, path: str) -> None:
    """Finite differences know of no truncation."""
    args, masks = masked(cell, name)

    def derivatives(path: str) -> dict[str, Tensor]:
        out = runner(path, cell, args, masks, False)(*args.given())
        first = torch.autograd.grad(sum(t.sin().sum() for t in out), args.given(), create_graph=True)
        second = torch.autograd.grad(sum(t.sin().sum() for t in first), args.given())
        return {str(i): t.detach() for i, t in enumerate((*out, *first, *second))}

    assert_same(derivatives(path), derivatives("reference"), tolerance=1e-12)


@pytest.mark.parametrize(
    "cell, name, hx",
    [
        *(("lstm", name, True) for name in MASKS | TRUNCATED),
        *((cell, name, False) for cell in CELLS for name in ("lengths-resets-detach", "packed-resets-detach")),
    ],
)
def test_opcheck_passes(cell: str, name: str, hx: bool) -> None:
    args, masks = masked(cell, name, hx=hx)
    reverse = not masks.detach_every
    torch.library.opcheck(SAVING[cell], (*args, None, False, reverse, False, *masks))
    fixed = [None if t is None else t.detach() for t in args]
    torch.library.opcheck(FORWARD[cell], (*fixed, None, False, reverse, *masks[:3]))
    y, h_n, c_n, saved, c = SAVING[cell](*fixed, None, False, reverse, False, *masks)
    dc_n, dc = (torch.randn_like(t) if t.numel() else None for t in (c_n, c))
    grads = torch.randn_like(y), torch.randn_like(h_n), dc_n
    torch.library.opcheck(
        BACKWARD[cell], (*grads, *args, None, y, saved, c, False, reverse, True, True, *masks, dc)
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------- the modules


def drawn(module: Any, names: str, T: int, B: int) -> dict[str, Tensor | int | bool]:
    """Arguments of a call of the module: those that are named, of the sizes that it takes them in."""
    every = {
        "lengths": torch.randint(T + 1, (B,)),
        "resets": drawn_resets(*((B, T) if module.batch_first else (T, B))),
        "detach_every": 2,
        "return_states": True,
    }
    return {name: every[name] for name in names.split()}


ALL = "lengths resets detach_every"
CALLS = [
    *((LAYERS[0], {}, name) for name in ("lengths", "resets", "detach_every", "return_states")),
    (LAYERS[0], {"num_layers": 2, "batch_first": True, "recompute": True}, f"{ALL} return_states"),
    (LAYERS[0], {"bidirectional": True}, "lengths resets return_states"),
    (LAYERS[0], {"proj_size": 2, "batch_first": True}, f"{ALL} return_states"),
    *((kind, {"num_layers": 2}, ALL) for kind in LAYERS[1:]),
    *((kind, {"bidirectional": True, "batch_first": True}, "lengths resets") for kind in LAYERS[1:]),
]
each_call = pytest.mark.parametrize(
    "kind, options, names",
    [pytest.param(*call, id="-".join([repr(call[0]), *(f"{k}={v}" for k, v in call[1].items()), call[2]]))
     for call in CALLS],
)  # fmt: skip
# torch.compile and torch.export unroll what has no operator, for each length anew.
each_call_of_an_operator = pytest.mark.parametrize(
    *each_call.args[:1], [call for call in each_call.args[1] if "proj_size" not in call.values[1]]
)


def size(module: Any, T: int, B: int) -> tuple[int, int, int]:
    return (B, T, 3) if module.batch_first else (T, B, 3)


Loss = Callable[[dict[str, Tensor], Tensor, dict[str, Any]], Tensor]


def losses(module: Any) -> tuple[Loss, Loss]:
    """The same function of parameters, input and masks: through the module, and through the reference."""

    def loss(out: Any) -> Tensor:
        return sum((t.sin().sum() for t in flatten(out)), torch.zeros((), dtype=f64))

    return (
        lambda parameters, x, masks: loss(functional_call(module, parameters, (x,), masks)),
        lambda parameters, x, masks: loss(by_reference(module, x, parameters=parameters, **masks)),
    )


TRANSFORMS: dict[str, Callable[..., Any]] = {
    "grad": lambda f, p, x, m: grad(f)(p, x, m),
    "grad of grad": lambda f, p, x, m: grad(lambda x: grad(f)(p, x, m)["weight_hh_l0"].sin().sum())(x),
    "jvp": lambda f, p, x, m: jvp(lambda p, x: f(p, x, m), (p, x), ({n: t.cos() for n, t in p.items()}, x.cos()))[1],
    "jvp of grad": lambda f, p, x, m: jvp(lambda x: grad(f)(p, x, m), (x,), (x.cos(),))[1],
    "jacrev": lambda f, p, x, m: torch.func.jacrev(lambda w: f(p | {"weight_hh_l0": w}, x, m))(p["weight_hh_l0"]),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@each_call
def test_transforms_agree_with_the_reference(kind: Kind, options: Any, names: str, transform: str) -> None:
    module = kind.ours(3, 4, dtype=f64, **options)
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    x, masks = torch.randn(size(module, 4, 2), dtype=f64), drawn(module, names, 4, 2)
    actual, expected = (flatten_named(TRANSFORMS[transform](f, parameters, x, masks)) for f in losses(module))
    assert_same(actual, expected, tolerance=1e-12)


def flatten_named(tree: Any) -> dict[str, Tensor]:
    return tree if isinstance(tree, dict) else {"": tree}


@each_call
def test_per_sample_gradients_are_those_of_each_sample(kind: Kind, options: Any, names: str) -> None:
    """Of which each has masks of its own."""
    module = kind.ours(3, 4, dtype=f64, **options)
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    xs, many = torch.randn(3, *size(module, 4, 2), dtype=f64), [drawn(module, names, 4, 2) for _ in range(3)]
    mapped = {name: [m[name] for m in many] for name in many[0]}
    tensors = {name: torch.stack(m) for name, m in mapped.items() if isinstance(m[0], Tensor)}  # type: ignore[arg-type]
    rest = {name: m[0] for name, m in mapped.items() if name not in tensors}
    ours, theirs = losses(module)
    together = vmap(lambda x, masks: grad(ours)(parameters, x, masks | rest))(xs, tensors)
    for i, (x, masks) in enumerate(zip(xs, many, strict=True)):
        assert_same({n: g[i] for n, g in together.items()}, grad(theirs)(parameters, x, masks), tolerance=1e-12)


@each_layer
def test_transforms_of_a_packed_sequence_agree_with_the_reference(kind: Kind) -> None:
    module = kind.ours(3, 4, dtype=f64)
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    packed = drawn_packed([2, 4, 1], 3)
    resets = packed._replace(data=drawn_resets(len(packed.data)))
    ours, theirs = (lambda p, data, masks, f=f: f(p, PackedSequence(data, *packed[1:]), masks) for f in losses(module))
    for run in TRANSFORMS.values():
        x, masks = packed.data.detach(), {"resets": resets, "detach_every": 2}
        actual, expected = (flatten_named(run(f, parameters, x, masks)) for f in (ours, theirs))
        assert_same(actual, expected, tolerance=1e-12)
    samples = torch.randn(3, *packed.data.shape, dtype=f64)
    together = vmap(lambda data: grad(ours)(parameters, data, {}))(samples)
    for i, data in enumerate(samples):
        assert_same({n: g[i] for n, g in together.items()}, grad(theirs)(parameters, data, {}), tolerance=1e-12)


# ------------------------------------------------------------------------------------------------ graphs of any length

SIZES = [(5, 7), (6, 9), (8, 10), (11, 3), (20, 17), (2, 5)]


@compiles
@each_call_of_an_operator
def test_changing_lengths_and_batches_compile_twice_at_most(kind: Kind, options: Any, names: str) -> None:
    """Once for the first size, and once for all others, in one graph, forward and backward."""
    module = kind.ours(3, 4, dtype=f64, **options)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for T, B in SIZES:
        x = torch.randn(size(module, T, B), dtype=f64, requires_grad=True)
        masks, leaves = drawn(module, names, T, B), leaves_of(module, x, None)
        assert_bitwise(gradients(compiled(x, **masks), leaves), gradients(module(x, **masks), leaves))
    assert counter.frame_count == 2


@compiles
@pytest.mark.parametrize("hx", [True, False], ids=["hx", "no_hx"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
def test_packed_sequences_of_any_sizes_compile_twice_at_most(options: Any, hx: bool) -> None:
    module = fusedrnn.LSTM(3, 4, dtype=f64, **options)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for lengths in ([2, 5, 1], [4, 1, 4, 4, 2], [3, 7, 7, 2, 2, 1, 5], [1, 6]):
        x, (_, state) = drawn_packed(lengths, 3), LAYERS[0].example(module, 1, len(lengths), hx=hx)
        resets = x._replace(data=drawn_resets(len(x.data))) if hx else None
        leaves = leaves_of(module, x.data, state)
        actual, expected = compiled(x, state, resets=resets), module(x, state, resets=resets)
        for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
            assert torch.equal(getattr(actual[0], name), getattr(expected[0], name)), name
        assert_bitwise(gradients(actual, leaves), gradients(expected, leaves))
    assert counter.frame_count == 2


@compiles
def test_inductor_compiles_every_mask_into_one_graph() -> None:
    module = fusedrnn.LSTM(3, 5, 2, batch_first=True, dtype=f64)
    compiled = torch.compile(module, fullgraph=True)
    x = torch.randn(3, 6, 3, dtype=f64, requires_grad=True)
    masks, leaves = drawn(module, f"{ALL} return_states", 6, 3), leaves_of(module, x, None)
    assert_same(gradients(compiled(x, **masks), leaves), gradients(module(x, **masks), leaves))


@compiles
def test_a_projection_with_masks_compiles_into_one_graph() -> None:
    module = fusedrnn.LSTM(3, 5, proj_size=2, recompute=True, dtype=f64)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(6, 3, 3, dtype=f64, requires_grad=True)
    masks, leaves = drawn(module, f"{ALL} return_states", 6, 3), leaves_of(module, x, None)
    assert_same(gradients(compiled(x, **masks), leaves), gradients(module(x, **masks), leaves))


def exported(module: Any, x: Any, masks: dict[str, Any], shapes: dict[str, Any]) -> Any:
    """The module of a program that was saved and loaded."""
    program = torch.export.export(module, (x,), masks, dynamic_shapes=shapes)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file).module()


@each_call_of_an_operator
def test_an_exported_layer_takes_any_length_batch_and_masks(kind: Kind, options: Any, names: str) -> None:
    module = kind.ours(3, 4, dtype=f64, **options).eval()
    rows = {0: Dim("first", min=2), 1: Dim("second", min=2)}
    each = {"lengths": {0: rows[0 if module.batch_first else 1]}, "resets": rows}
    masks = drawn(module, names, 7, 5)
    shapes = {"input": rows, **{name: each.get(name) for name in masks}}
    program = exported(module, torch.randn(size(module, 7, 5), dtype=f64), masks, shapes)
    for T, B in [(7, 5), (2, 9), (13, 4)]:
        x, masks = torch.randn(size(module, T, B), dtype=f64), drawn(module, names, T, B)
        assert_bitwise(dict(enumerate(flatten(program(x, **masks)))), dict(enumerate(flatten(module(x, **masks)))))


class OfPackedData(torch.nn.Module):
    """A layer over packed data, as functional.lstm takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.nn.ParameterList(fusedrnn.LSTM(3, 4, dtype=f64).parameters())

    def forward(self, data: Tensor, batch_sizes: Tensor, h: Tensor, c: Tensor) -> Any:
        return functional.lstm(data, (h, c), list(self.weights), batch_sizes=batch_sizes)


def test_an_exported_layer_takes_any_packed_data() -> None:
    module = OfPackedData()
    batch = {1: Dim("B", min=2)}
    shapes = {"data": {0: Dim("N", min=2)}, "batch_sizes": {0: Dim("T", min=2)}, "h": batch, "c": batch}

    def example(lengths: list[int]) -> tuple[Tensor, ...]:
        packed = drawn_packed(lengths, 3)
        return packed.data.detach(), packed.batch_sizes, *torch.randn(2, 1, len(lengths), 4, dtype=f64)

    program = torch.export.export(module, example([4, 2, 1]), dynamic_shapes=shapes).module()
    for lengths in ([4, 2, 1], [9, 3], [5, 5, 5, 2, 2, 1]):
        given = example(lengths)
        for a, b in zip(flatten(program(*given)), flatten(module(*given)), strict=True):
            close("exported", a, b, 0.0)
