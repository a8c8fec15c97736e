"""reset_after=False: a GRU whose reset gate comes before the matrix product."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from cases import assert_same, close, f32, f64, failure, flatten, outputs, results
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fusedrnn
from fusedrnn import reference

OPTIONS: list[dict[str, Any]] = [
    {},
    {"bias": False},
    {"batch_first": True},
    {"bidirectional": True},
    {"num_layers": 2, "dropout": 0.4, "weight_drop": 0.3},
    {"num_layers": 2, "bidirectional": True, "batch_first": True, "dropout": 0.3},
]


def make(dtype: torch.dtype = f64, **options: Any) -> fusedrnn.GRU:
    torch.manual_seed(0)
    return fusedrnn.GRU(3, 5, dtype=dtype, reset_after=False, **options)


def example(module: nn.GRU, T: int = 4, B: int | None = 2, dtype: torch.dtype = f64) -> tuple[Tensor, Tensor]:
    rows = () if B is None else (B,)
    size = (*rows, T, 3) if module.batch_first and B is not None else (T, *rows, 3)
    layers = module.num_layers * (2 if module.bidirectional else 1)
    return (
        torch.randn(size, dtype=dtype, requires_grad=True),
        torch.randn(layers, *rows, 5, dtype=dtype, requires_grad=True),
    )


def as_printed(x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
    """Equations 5 to 8 of Cho et al. (2014), unit by unit, with biases; z as in nn.GRU, the share of the old state."""
    (w_r, w_z, w), (u_r, u_z, u) = w_ih.chunk(3), w_hh.chunk(3)
    (b_r, b_z, b), (c_r, c_z, c) = b_ih.chunk(3), b_hh.chunk(3)
    units = []
    r = [torch.sigmoid(x @ w_r[j] + h @ u_r[j] + b_r[j] + c_r[j]) for j in range(len(u))]
    reset = torch.stack(r, 1) * h
    for j in range(len(u)):
        z = torch.sigmoid(x @ w_z[j] + h @ u_z[j] + b_z[j] + c_z[j])
        units.append(z * h[:, j] + (1 - z) * torch.tanh(x @ w[j] + reset @ u[j] + b[j] + c[j]))
    return torch.stack(units, 1)


def test_steps_are_those_of_the_printed_formula() -> None:
    module = make()
    x, hx = example(module)
    h, steps = hx[0], []
    for x_t in x:
        h = as_printed(x_t, h, *module.all_weights[0])
        steps.append(h)
    y, h_n = module(x, hx)
    close("y", y, torch.stack(steps), 1e-14)
    close("h_n", h_n[0], h, 1e-14)
    leaves = [x, hx, *module.parameters()]
    pairs = (torch.autograd.grad(torch.stack(outputs).sin().sum(), leaves) for outputs in (list(y), steps))
    for name, got, expected in zip(["x", "hx", *dict(module.named_parameters())], *pairs, strict=True):
        close(name, got, expected, 1e-13)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [f64, f32], ids=str)
def test_agrees_with_the_reference_under_every_option(options: dict[str, Any], dtype: torch.dtype) -> None:
    ours = make(dtype, **options)
    theirs = reference.GRU(3, 5, dtype=dtype, reset_after=False, **options)
    theirs.load_state_dict(ours.state_dict())
    for T in (1, 6):
        x, hx = example(ours, T, dtype=dtype)
        assert_same(results(ours, x, hx, seed=5), results(theirs, x, hx, seed=5), dtype)
        assert_same(results(ours, x, seed=5), results(theirs, x, seed=5), dtype)


def test_derivatives_of_first_and_second_order_agree_with_finite_differences() -> None:
    module = make()
    names, weights = zip(*module.named_parameters(), strict=True)

    def run(x: Tensor, h: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(names, weights, strict=True))
        return tuple(flatten(torch.func.functional_call(module, given, (x, h))))

    inputs = (*example(module, T=3), *weights)
    assert gradcheck(run, inputs, fast_mode=True, check_forward_ad=True)
    assert gradgradcheck(run, inputs, fast_mode=True)


def test_it_is_nn_gru_where_the_order_does_not_matter_and_no_other_one_elsewhere() -> None:
    module, theirs = make(), nn.GRU(3, 5, dtype=f64)
    theirs.load_state_dict(module.state_dict())
    x, hx = example(module)
    assert (module(x, hx)[0] - theirs(x, hx)[0]).abs().max() > 1e-3
    with torch.no_grad():
        for other in (module, theirs):  # a candidate that does not read the state
            other.weight_hh_l0[10:] = 0
            other.bias_hh_l0[10:] = 0
    assert_same(outputs(module, x, hx), outputs(theirs, x, hx))


def test_cell_function_and_unbatched_input_agree_with_the_layer() -> None:
    module = make()
    x, hx = example(module, T=1)
    weights = module.all_weights[0]
    expected = module(x, hx)[1][0]
    cell = fusedrnn.GRUCell(3, 5, dtype=f64, reset_after=False)
    with torch.no_grad():
        for parameter, weight in zip(cell.parameters(), weights, strict=True):
            parameter.copy_(weight)
    close("cell", cell(x[0], hx[0]), expected, 1e-14)
    close("unbatched cell", cell(x[0, 0], hx[0, 0]), expected[0], 1e-14)
    close("cell from zeros", cell(x[0]), module(x)[1][0], 1e-14)
    close("function", fusedrnn.functional.gru(x, hx, weights, reset_after=False)[1][0], expected, 0)
    close("unbatched", module(x[:, 0], hx[:, 0])[1][0], expected[0], 1e-14)


def test_tokens_pick_the_rows_of_their_table() -> None:
    module = make(num_layers=2)
    table, tokens = torch.randn(6, 3, dtype=f64), torch.randint(6, (5, 4))
    close("y", module(tokens, embedding=table)[0], module(table[tokens])[0], 1e-13)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_a_copy_is_alike_and_says_so(copied: Any) -> None:
    for module, args in ((make(), example(make())), (fusedrnn.GRUCell(3, 5, reset_after=False), (torch.randn(2, 3),))):
        other = copied(module)
        assert "reset_after=False" in repr(other)
        for got, expected in zip(flatten(other(*args)), flatten(module(*args)), strict=True):
            assert torch.equal(got, expected)
    assert "reset_after" not in repr(fusedrnn.GRU(3, 5)) + repr(fusedrnn.GRUCell(3, 5))


@pytest.mark.usefixtures("fresh_dynamo")
def test_compiles_into_one_graph() -> None:
    module = make(num_layers=2)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x, hx = example(module)
    assert_same(results(compiled, x, hx), results(module, x, hx))


def test_autocast_gives_its_dtype() -> None:
    module = make(f32)
    x, hx = example(module, dtype=f32)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x, hx)[0]
    assert y.dtype == torch.bfloat16
    close("y", y.float(), module(x, hx)[0], 0.02)


@pytest.mark.parametrize("model", [fusedrnn.GRU, fusedrnn.GRUCell])
def test_unfuse_leaves_what_nn_cannot_compute(model: Any) -> None:
    module = model(3, 5, reset_after=False)
    with pytest.warns(UserWarning, match=r"its reset gate comes before the matrix product \(reset_after=False\)"):
        assert type(fusedrnn.unfuse(module)) is model
    module.reset_after = True
    assert "reset_after" not in vars(fusedrnn.unfuse(module))


MASKS: list[dict[str, Any]] = [
    {"detach_every": 2},
    {"lengths": torch.tensor([3, 5, 0])},
    {"resets": torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 1], [1, 1, 0], [0, 0, 0]]) > 0},
]
MASKS += [{**MASKS[1], **MASKS[2]}, {**MASKS[0], **MASKS[1], **MASKS[2]}]


def entry_by_entry(
    module: fusedrnn.GRU, x: Tensor, hx: Tensor, resets: Any = None, lengths: Any = None, detach_every: int = 0
) -> tuple[Tensor, Tensor]:
    """y and h_n by the printed formula."""
    y, ends = torch.zeros(*x.shape[:2], 5, dtype=f64), []
    for b in range(x.shape[1]):
        h = hx[0, b : b + 1]
        for t in range(len(x) if lengths is None else int(lengths[b])):
            if resets is not None and resets[t, b]:
                h = torch.zeros_like(h)
            if detach_every and t and t % detach_every == 0:
                h = h.detach()
            h = as_printed(x[t, b : b + 1], h, *module.all_weights[0])
            y[t, b] = h[0]
        ends.append(h)
    return y, torch.cat(ends)[None]


@pytest.mark.parametrize("recompute", [False, True], ids=lambda r: f"recompute={r}")
@pytest.mark.parametrize("masks", MASKS, ids=lambda masks: "-".join(masks))
def test_masks_are_those_of_the_printed_formula_entry_by_entry(masks: dict[str, Any], recompute: bool) -> None:
    module = make(recompute=recompute)
    x, hx = example(module, T=5, B=3)
    leaves, every = [x, hx, *module.parameters()], []
    for y, h_n in (module(x, hx, **masks), entry_by_entry(module, x, hx, **masks)):
        every.append([y, h_n, *torch.autograd.grad(y.sin().sum() + h_n.cos().sum(), leaves)])
    for name, got, expected in zip(["y", "h_n", "x", "hx", *dict(module.named_parameters())], *every, strict=True):
        close(name, got, expected, 1e-13)


def test_packed_sequences_are_padded_ones_with_lengths() -> None:
    module = make(num_layers=2, bidirectional=True)
    x, hx = example(module, T=5, B=3)
    lengths, resets = torch.tensor([3, 5, 1]), MASKS[2]["resets"]
    packed, packed_resets = (pack_padded_sequence(t, lengths, enforce_sorted=False) for t in (x, resets))
    y, h_n = module(packed, hx, resets=packed_resets)
    expected_y, expected_h_n = module(x, hx, resets=resets, lengths=lengths)
    close("y", pad_packed_sequence(y)[0], expected_y, 1e-14)
    close("h_n", h_n, expected_h_n, 1e-14)


@pytest.mark.parametrize("size", [(1, 3, 5), (1, 2, 4), (2, 2, 5)], ids=str)
def test_a_state_of_a_wrong_size_raises_what_nn_raises(size: tuple[int, ...]) -> None:
    x, hx = torch.randn(4, 2, 3, dtype=f64), torch.zeros(size, dtype=f64)
    actual, expected = (failure(lambda m=m: m(x, hx)) for m in (make(), nn.GRU(3, 5, dtype=f64)))
    assert type(actual) is type(expected) and str(actual) == str(expected)


def test_weights_of_another_shape_are_refused() -> None:
    w_ih, w_hh = torch.randn(15, 3), torch.randn(16, 5)
    with pytest.raises(RuntimeError, match=r"Expected w_hh of shape \[15, 5\], got \[16, 5\]"):
        fusedrnn.functional.gru(torch.randn(4, 2, 3), None, [w_ih, w_hh], reset_after=False)
