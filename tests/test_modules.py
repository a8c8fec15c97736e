"""The numbers: outputs and gradients of the modules are those of their nn.* twins."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from cases import (
    MODULES,
    Kind,
    assert_bitwise,
    assert_same,
    call,
    cotangent,
    each_cell,
    each_dtype,
    each_layer,
    each_module,
    each_module_with_some_options,
    f64,
    flatten,
    outputs,
    results,
    sample,
    widen,
)
from torch import Tensor


@pytest.mark.parametrize("hx", [True, False], ids=["hx", "no_hx"])
@pytest.mark.parametrize("B", [3, None], ids=["batched", "unbatched"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "bidirectional"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time_first", "batch_first"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("num_layers, dropout", [(1, 0.0), (2, 0.0), (2, 0.4), (3, 0.0), (3, 0.4)])
@each_layer
def test_layer_agrees_with_nn_under_every_option(
    kind: Kind, num_layers: int, dropout: float, bias: bool, batch_first: bool, bidirectional: bool, B: int, hx: bool
) -> None:
    """In training mode with one seed for both: the dropout masks are nn.*'s own."""
    ours, theirs = kind.pair(3, 5, num_layers, bias=bias, batch_first=batch_first, dropout=dropout,
                             bidirectional=bidirectional, dtype=f64)  # fmt: skip
    x, state = kind.example(ours, T=4, B=B, hx=hx)
    assert_same(results(ours, x, state, seed=5), results(theirs, x, state, seed=5))


@each_dtype
@pytest.mark.parametrize("hx", [True, False], ids=["hx", "no_hx"])
@pytest.mark.parametrize("B", [3, None], ids=["batched", "unbatched"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@each_cell
def test_cell_agrees_with_nn_under_every_option(kind: Kind, bias: bool, B: int, hx: bool, dtype: torch.dtype) -> None:
    ours, theirs = kind.pair(3, 5, bias=bias, dtype=dtype)
    x, state = kind.example(ours, B=B, hx=hx, dtype=dtype)
    assert_same(results(ours, x, state), results(theirs, x, state), dtype)


LENGTHS = [1, 2, 3, 7, 15, 16, 17, 33, 129]
# Every length in every place, and every length of B with several of H: each factor is coprime with 9.
SIZES = [
    tuple(LENGTHS[(factor * i + shift) % 9] for factor, shift in zip((1, 2, 4, 5), shifts, strict=True))
    for shifts in [(0, 1, 3, 2), (2, 8, 1, 7)]
    for i in range(9)
]


def options_of_row(row: int) -> dict[str, Any]:
    """Options change from row to row, so that sizes meet options without their product."""
    return {
        "num_layers": 2 if row % 3 == 2 else 1,
        "bias": row % 5 != 4,
        "batch_first": row % 2 == 1,
        "bidirectional": row % 4 >= 2,
    }


@each_dtype
@pytest.mark.parametrize("row, size", list(enumerate(SIZES)), ids=["x".join(map(str, size)) for size in SIZES])
@each_module
def test_agrees_with_float64_nn_at_every_size(kind: Kind, row: int, size: tuple[int, ...], dtype: torch.dtype) -> None:
    """Sizes are T, B, I, H. float32 is compared with nn.* in float64, so that the error is ours alone."""
    options = {} if kind.is_cell else options_of_row(row)
    ours, theirs, x, hx = sample(kind, size, dtype, **options)
    expected = results(theirs, widen(x), widen(hx))
    torch.set_num_threads(2 if row % 4 == 3 else 1)
    actual = results(ours, x, hx)
    torch.set_num_threads(1)
    assert_same(actual, expected, dtype)


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time_first", "batch_first"])
@pytest.mark.parametrize("dropout", [0.3, 1.0])
@each_dtype
@each_layer
def test_training_draws_the_dropout_masks_of_nn(
    kind: Kind, dtype: torch.dtype, dropout: float, batch_first: bool, grad: bool
) -> None:
    """Everything drawn after the call is the same as after nn.*'s, too."""
    ours, theirs = kind.pair(3, 5, 3, batch_first=batch_first, dropout=dropout, bidirectional=True, dtype=dtype)
    x, hx = kind.example(ours, T=4, dtype=dtype)
    with torch.set_grad_enabled(grad):
        expected = results(theirs, x, hx, seed=5)
        state = torch.get_rng_state()
        actual = results(ours, x, hx, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert_same(actual, expected, dtype)


@each_layer
def test_eval_drops_nothing_and_draws_nothing(kind: Kind) -> None:
    module = kind.ours(3, 5, 2, dropout=0.9, dtype=f64).eval()
    plain = kind.ours(3, 5, 2, dtype=f64)
    plain.load_state_dict(module.state_dict())
    x, hx = kind.example(module)
    state = torch.get_rng_state()
    assert_bitwise(results(module, x, hx), results(plain, x, hx))
    assert torch.equal(torch.get_rng_state(), state)
    module.train()
    assert not torch.equal(outputs(module, x, hx)["y"], outputs(plain, x, hx)["y"])


@pytest.mark.parametrize("threads", [1, 2])
@each_dtype
@each_module
def test_two_runs_are_bitwise_equal(kind: Kind, dtype: torch.dtype, threads: int) -> None:
    torch.set_num_threads(threads)
    for B, H in [(1, 33), (2, 129), (33, 17)]:
        module = kind.ours(7, H, dtype=dtype)
        x, hx = kind.example(module, T=5, B=B, dtype=dtype)
        assert_bitwise(*(results(module, x, hx) for _ in range(2)))


@each_module
def test_calls_from_several_python_threads_do_not_disturb_each_other(kind: Kind) -> None:
    torch.set_num_threads(2)
    module = kind.ours(7, 33, dtype=f64)
    x, hx = kind.example(module, T=16, B=5)
    expected = results(module, x, hx)
    with ThreadPoolExecutor(4) as pool:
        for actual in pool.map(lambda _: results(module, x, hx), range(12)):
            assert_same(actual, expected)


# ----------------------------------------------------------------------------------------- empty and non-finite tensors


inf, nan = float("inf"), float("nan")


@pytest.mark.parametrize("hx", [True, False], ids=["hx", "no_hx"])
@each_module_with_some_options
def test_empty_batch_gives_empty_outputs_and_zero_gradients(kind: Kind, options: dict[str, Any], hx: bool) -> None:
    ours, theirs = kind.pair(3, 4, dtype=f64, **options)
    x, state = kind.example(ours, B=0, hx=hx)
    actual = results(ours, x, state)
    assert_same(actual, results(theirs, x, state))
    for name, _ in ours.named_parameters():
        grad = actual[f"grad of {name}"]
        assert grad is not None and grad.count_nonzero() == 0


@each_cell
def test_cells_of_size_zero_answer_as_nn_answers(kind: Kind) -> None:
    for sizes in [(3, 0), (0, 4)]:
        ours, theirs = kind.pair(*sizes, dtype=f64)
        x, hx = kind.example(ours)
        assert_same(results(ours, x, hx), results(theirs, x, hx))


@pytest.mark.parametrize("B, H", [(1, 5), (5, 17)])
@pytest.mark.parametrize("value", [nan, inf, -inf])
@each_dtype
@each_module
def test_non_finite_input_reaches_what_it_reaches_in_nn(
    kind: Kind, dtype: torch.dtype, value: float, B: int, H: int
) -> None:
    """Outputs, states and gradients hold NaN and infinity in the same places, finite numbers elsewhere.

    A NaN passes ReLU, and the gradient passes where it stands: torch stops what is <= 0, which NaN is not.
    """
    ours, theirs = kind.pair(3, H, dtype=dtype)
    x, hx = kind.example(ours, T=5, B=B, dtype=dtype)
    with torch.no_grad():
        x[(B // 2, 1) if kind.is_cell else (2, B // 2, 1)] = value
    actual, expected = results(ours, x, hx), results(theirs, x, hx)
    assert any(tensor is not None and not tensor.isfinite().all() for tensor in expected.values())
    assert_same(actual, expected, dtype)


@pytest.mark.parametrize("value", [nan, inf, -inf])
@each_dtype
@pytest.mark.parametrize(
    "kind, place",
    [(kind, place) for kind in MODULES for place in (*kind.states, "weight_ih", "weight_hh", "bias_ih", "bias_hh")],
    ids=str,
)
def test_non_finite_state_or_weight_reaches_the_outputs_it_reaches_in_nn(
    kind: Kind, dtype: torch.dtype, place: str, value: float
) -> None:
    """Weights are tried from a zero state: 0 * inf is NaN, so that the product of the first step cannot be left out."""
    ours, theirs = kind.pair(3, 17, dtype=dtype)
    x, hx = kind.example(ours, B=5, hx=place.endswith("_0"), dtype=dtype)
    with torch.no_grad():
        if hx is None:
            for module in (ours, theirs):
                getattr(module, kind.parameter(place))[3] = value
        else:
            flatten(hx)["hc".index(place[0])][..., 2, 4] = value
        assert_same(outputs(ours, x, hx), outputs(theirs, x, hx), dtype)


@pytest.mark.parametrize("factor", [1e3, 1e30])
@each_dtype
@each_module
def test_saturated_gates_give_finite_numbers_as_in_nn(kind: Kind, dtype: torch.dtype, factor: float) -> None:
    ours, theirs = kind.pair(3, 17, dtype=dtype)
    x, hx = kind.example(ours, T=1, dtype=dtype)
    x = (x.detach() * factor).requires_grad_()
    expected = results(theirs, x, hx)
    assert all(tensor.isfinite().all() for tensor in expected.values())
    assert_same(results(ours, x, hx), expected, dtype)


# -------------------------------------------------------------------------------------------------- memory and aliasing


def every_other(tensor: Tensor) -> Tensor:
    spread = tensor.new_full([2 * size for size in tensor.shape], nan)
    return spread[tuple(slice(None, None, 2) for _ in tensor.shape)].copy_(tensor)


def axes_reversed(tensor: Tensor) -> Tensor:
    axes = list(range(tensor.dim()))[::-1]
    return tensor.permute(axes).contiguous().permute(axes)


def one_element_off(tensor: Tensor) -> Tensor:
    return tensor.new_empty(tensor.numel() + 1)[1:].view_as(tensor).copy_(tensor)


# The same shape in other memory; expanding repeats the first slice.
MEMORY: dict[str, Callable[[Tensor], Tensor]] = {
    "every_other": every_other,
    "axes_reversed": axes_reversed,
    "one_element_off": one_element_off,
    "expanded_first": lambda tensor: tensor[:1].expand_as(tensor),
    "expanded_rows": lambda tensor: tensor[..., :1, :].expand_as(tensor),
    "expanded_features": lambda tensor: tensor[..., :1].expand_as(tensor),
}


def relaid(tree: Any, lay: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(tree, Tensor):
        return lay(tree.detach()).requires_grad_()
    return tuple(relaid(branch, lay) for branch in tree)


@pytest.mark.parametrize("memory", MEMORY)
@each_dtype
@each_module_with_some_options
def test_strided_expanded_and_transposed_tensors_count_by_value(
    kind: Kind, options: dict[str, Any], dtype: torch.dtype, memory: str
) -> None:
    ours, theirs = kind.pair(6, 9, dtype=dtype, **options)
    x, hx = (relaid(tree, MEMORY[memory]) for tree in kind.example(ours, dtype=dtype))
    expected = results(theirs, relaid(x, Tensor.clone), relaid(hx, Tensor.clone), seed=5)
    assert_same(results(ours, x, hx, seed=5), expected, dtype)
    # The weights likewise.
    for parameter in ours.parameters():
        parameter.data = every_other(parameter.data)
    assert_same(results(ours, x, hx, seed=5), expected, dtype)


@pytest.mark.parametrize("memory", MEMORY)
@each_module
def test_strided_and_expanded_gradients_of_outputs_count_by_value(kind: Kind, memory: str) -> None:
    ours, theirs = kind.pair(6, 9, dtype=f64)
    x, hx = kind.example(ours)
    expected = results(theirs, x, hx, lay=lambda grad: MEMORY[memory](grad).contiguous())
    assert_same(results(ours, x, hx, lay=MEMORY[memory]), expected)


@pytest.mark.parametrize("T, B", [(1, 1), (5, 3), (5, None)])
@each_module
def test_outputs_share_no_memory_with_inputs_or_each_other(kind: Kind, T: int, B: int | None) -> None:
    module = kind.ours(4, 4, dtype=f64)
    for grad, hx in itertools.product([True, False], [True, False]):
        x, state = kind.example(module, T=T, B=B, hx=hx)
        with torch.set_grad_enabled(grad):
            tensors = [x, *flatten(state), *module.parameters(), *outputs(module, x, state).values()]
        addresses = [tensor.untyped_storage().data_ptr() for tensor in tensors]
        assert len(set(addresses)) == len(addresses)


@each_layer
def test_writing_into_y_leaves_the_states_alone_and_never_falsifies_a_gradient(kind: Kind) -> None:
    """An error in backward is as good as the right gradient: nn.* itself answers now one way, now the other."""
    ours, theirs = kind.pair(3, 4, dtype=f64)
    x, hx = kind.example(ours)
    expected = results(theirs, x, hx)
    out = outputs(ours, x, hx)
    out["y"].mul_(2)
    for name, state in list(out.items())[1:]:
        assert_same({name: state}, {name: expected[name]})
    try:
        (actual,) = torch.autograd.grad(out["y"], x, cotangent(out["y"]))
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
    else:
        doubled = 2 * cotangent(out["y"])
        assert_same({"x": actual}, {"x": torch.autograd.grad(outputs(theirs, x, hx)["y"], x, doubled)[0]})


@each_module
def test_writing_into_an_input_before_backward_is_an_error(kind: Kind) -> None:
    module = kind.ours(3, 4, dtype=f64)
    x, hx = kind.example(module)
    x = x.detach().clone()
    out = flatten(call(module, x, hx))
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out[0].sum().backward()
