"""Tokens with an embedding: the results of F.embedding and the layer, whichever way they are computed."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from cases import (
    TOLERANCE,
    Kind,
    Results,
    assert_bitwise,
    assert_same,
    cotangent,
    each_dtype,
    each_layer,
    f32,
    f64,
    flatten,
)
from op_cases import LAYOUTS, arguments, cotangents
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from fusedrnn import functional, network, reference
from fusedrnn.autograd import FUNCTIONS
from fusedrnn.ops import BACKWARD, CELLS, FORWARD, SAVING

each_cell = pytest.mark.parametrize("cell", CELLS)
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda v: f"batch_first={v[0]}-reverse={v[1]}")

# Rows of the table for T * B = 21 tokens: fewer, so that the table is projected, and no fewer, so that rows are.
each_table = pytest.mark.parametrize("V", [1, 4, 20, 21, 50])
T, B = 7, 3

OPTIONS: list[dict[str, Any]] = [
    {},
    {"batch_first": True},
    {"bidirectional": True},
    {"num_layers": 2, "bias": False},
    {"num_layers": 2, "batch_first": True, "bidirectional": True, "dropout": 0.3},
    {"recompute": True, "num_layers": 2, "bidirectional": True},
]
each_option = pytest.mark.parametrize("options", OPTIONS, ids=str)


def draw(V: int, *size: int) -> Tensor:
    """Tokens of which some repeat and the last row of the table is one."""
    tokens = torch.randint(V, size)
    tokens.view(-1)[:2] = V - 1
    return tokens


def token_results(run: Any, table: Tensor, weights: Any, hx: Any) -> Results:
    """Outputs and gradients of run(table, hx); weights are those that it uses, by name."""
    torch.manual_seed(5)  # of dropout
    out = flatten(run(table, hx))
    leaves = {"table": table, **dict(weights), **dict(zip(("h0", "c0"), flatten(hx), strict=False))}
    grads = torch.autograd.grad(out, list(leaves.values()), [cotangent(t) for t in out])
    return {
        **{f"output {i}": t.detach() for i, t in enumerate(out)},
        **{f"grad of {name}": g for name, g in zip(leaves, grads, strict=True)},
    }


@each_layer
@each_option
@each_table
@each_dtype
def test_modules_give_the_results_of_nn_with_an_embedding(kind: Kind, options, V, dtype):
    theirs_only = {k: v for k, v in options.items() if k != "recompute"}
    ours, theirs = kind.ours(5, 6, dtype=dtype, **options), kind.theirs(5, 6, dtype=f64, **theirs_only)
    theirs.load_state_dict(ours.state_dict())
    embedding = nn.Embedding(V, 5, dtype=dtype)
    for rows, hx in ((B, True), (B, False), (None, True)):
        size = (T * B,) if rows is None else (B, T) if ours.batch_first else (T, B)
        tokens = draw(V, *size)
        _, state = kind.example(ours, T, rows, hx, dtype=dtype)
        wide = None if state is None else tuple(s.detach().double().requires_grad_() for s in flatten(state))
        if wide and len(wide) == 1:
            wide = wide[0]
        table = embedding.weight.detach().double().requires_grad_()
        assert_same(
            token_results(
                lambda t, h, tokens=tokens: ours(tokens, h, embedding=t),
                embedding.weight,
                ours.named_parameters(),
                state,
            ),
            token_results(
                lambda t, h, tokens=tokens: theirs(F.embedding(tokens, t), h), table, theirs.named_parameters(), wide
            ),
            dtype,
        )


@each_layer
@each_option
@each_table
def test_functions_give_the_results_of_the_embedded_input(kind: Kind, options, V):
    options = {k: v for k, v in options.items() if k != "bias"} | {"training": True}
    theirs = kind.theirs(5, 6, bias="bias" in options, dtype=f64, **{k: options[k] for k in options if k in PLACED})
    run = getattr(functional, kind.class_name.lower())
    tokens = draw(V, *((B, T) if options.get("batch_first") else (T, B)))
    table = torch.randn(V, 5, dtype=f64, requires_grad=True)
    _, hx = kind.example(theirs, T, B)
    weights = list(theirs.parameters())
    options |= kind.options
    assert_same(
        token_results(
            lambda t, h: run(tokens, h, weights, embedding=t, **options), table, theirs.named_parameters(), hx
        ),
        token_results(
            lambda t, h: run(F.embedding(tokens, t), h, weights, **options), table, theirs.named_parameters(), hx
        ),
    )


PLACED = ("num_layers", "batch_first", "bidirectional")

# (T, B, I, H, V) of the operators: one token, several chunks of backward, units of one lane and of many.
SIZES = [(1, 1, 1, 1, 1), (3, 2, 7, 17, 2), (7, 1, 3, 15, 9), (5, 33, 2, 16, 3), (700, 3, 2, 5, 4), (2, 40, 4, 130, 3)]


def run_operator(cell, args, layout, tokens, grads) -> dict[str, Tensor]:
    y, h_n, c_n, saved, c = SAVING[cell](*args, tokens, *layout, False)
    back = BACKWARD[cell](*grads, *[None] * (3 - len(grads)), *args, tokens, y, saved, c, *layout, True, True)
    names = ("y", "h_n", "c_n", "dx", "dh0", "dc0", "dw_ih", "dw_hh", "db_ih", "db_hh")
    return dict(zip(names, (y, h_n, c_n, *back), strict=True))


@each_cell
@each_layout
@each_dtype
def test_operators_agree_with_the_embedded_input(cell, layout, dtype):
    for steps, batch, I, H, V in SIZES:
        args = arguments(cell, (steps, batch, I, H), dtype, layout[0])
        tokens = draw(V, *args.x.shape[:2]) if steps * batch > 1 else torch.zeros(1, 1, dtype=torch.int64)
        table = torch.randn(V, I, dtype=dtype)
        embedded = args._replace(x=F.embedding(tokens, table))
        grads = cotangents(cell, embedded, layout)
        right = run_operator(cell, embedded, layout, None, grads)
        rows = right["dx"].double().reshape(-1, I)
        right["dx"] = torch.zeros(V, I, dtype=f64).index_add_(0, tokens.reshape(-1), rows)
        assert_same(
            run_operator(cell, args._replace(x=table), layout, tokens, grads), right, dtype, 2 * TOLERANCE[dtype]
        )


@each_cell
def test_the_gradient_of_the_table_is_the_same_to_the_bit_for_any_number_of_threads(cell):
    args = arguments(cell, (40, 24, 9, 70), f32)._replace(x=torch.randn(6, 9))
    tokens = draw(6, 40, 24)
    grads = cotangents(cell, args._replace(x=torch.empty(40, 24, 9)), (False, False))
    alone = run_operator(cell, args, (False, False), tokens, grads)
    for threads in (2, 3, 2):
        torch.set_num_threads(threads)
        together = run_operator(cell, args, (False, False), tokens, grads)
        for name in ("y", "dx"):
            assert torch.equal(alone[name], together[name]), (name, threads)


@each_cell
def test_a_row_that_no_token_picks_gets_no_gradient(cell):
    args = arguments(cell, (5, 4, 3, 6))._replace(x=torch.randn(7, 3, dtype=f64))
    tokens = torch.tensor([1, 5, 6, 1]).expand(5, 4)
    grads = cotangents(cell, args._replace(x=torch.empty(5, 4, 3, dtype=f64)), (False, False))
    dx = run_operator(cell, args, (False, False), tokens, grads)["dx"]
    assert dx.any(1).tolist() == [False, True, False, False, False, True, True]


LAYINGS = {
    "transposed": lambda t: t.t().contiguous().t(),
    "expanded": lambda t: t[:1].expand_as(t),
    "every other": lambda t: t.repeat_interleave(2, 1)[:, ::2],
    "flipped": lambda t: t.flip(0),
}


@each_layer
@pytest.mark.parametrize("V", [4, 50])
@pytest.mark.parametrize("lay", LAYINGS)
def test_tokens_and_table_may_lie_in_memory_in_any_way(kind: Kind, V, lay):
    module = kind.ours(5, 6, dtype=f64)
    tokens = LAYINGS[lay](draw(V, T, B))
    _, hx = kind.example(module, T, B)
    table = torch.randn(5, V, dtype=f64).t().requires_grad_()

    def run(tokens, table):
        return token_results(lambda t, h: module(tokens, h, embedding=t), table, module.named_parameters(), hx)

    dense = table.detach().contiguous().requires_grad_()
    assert_bitwise(run(tokens, table), run(tokens.contiguous(), dense))


# ------------------------------------------------------------------------------------------------ cells

STEPS = {"lstm": functional.lstm_cell, "gru": functional.gru_cell, "rnn_tanh": functional.rnn_tanh_cell}
STEPS |= {"rnn_relu": functional.rnn_relu_cell, "gru_reset_before": partial(functional.gru_cell, reset_after=False)}
each_step = pytest.mark.parametrize("cell", STEPS)


def step_case(cell: str, rows: int, V: int, dtype: torch.dtype = f64) -> tuple[Tensor, Tensor, Any, list[Tensor]]:
    """Tokens, a table, the states and the weights of one step."""
    states, *weights = (t.requires_grad_() for t in step_tensors(cell, rows, dtype))
    hx = (states, torch.randn_like(states).requires_grad_()) if cell == "lstm" else states
    return torch.randint(V, (rows,)), torch.randn(V, 5, dtype=dtype, requires_grad=True), hx, weights


def step_tensors(cell: str, rows: int, dtype: torch.dtype) -> list[Tensor]:
    gates = {"lstm": 4, "rnn_tanh": 1, "rnn_relu": 1}.get(cell, 3)
    sizes = [(rows, 6), (gates * 6, 5), (gates * 6, 6), (gates * 6,), (gates * 6,)]
    return [torch.randn(size, dtype=dtype) for size in sizes]


# Tables of fewer rows than the step has, which are projected, of as many and of more; a step without rows.
@each_step
@each_dtype
@pytest.mark.parametrize("rows, V", [(9, 4), (9, 9), (9, 20), (1, 1), (1, 3), (0, 3), (40, 3)])
def test_cells_give_the_results_of_the_embedded_input(cell, dtype, rows, V):
    if cell == "gru_reset_before" and dtype not in (f32, f64):
        pytest.skip("it computes in the dtype of its tensors")
    tokens, table, hx, weights = step_case(cell, rows, V, dtype)
    named = {str(i): w for i, w in enumerate(weights)}
    assert_same(
        token_results(lambda t, h: STEPS[cell](tokens, h, *weights, embedding=t), table, named, hx),
        token_results(lambda t, h: STEPS[cell](F.embedding(tokens, t), h, *weights), table, named, hx),
        dtype,
        2 * TOLERANCE[dtype],
    )
    with torch.no_grad():
        got, expected = STEPS[cell](tokens, None, *weights, embedding=table), STEPS[cell](table[tokens], None, *weights)
    for a, b in zip(flatten(got), flatten(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@each_step
def test_gradcheck_and_gradgradcheck_of_cells(cell):
    tokens, table, hx, weights = step_case(cell, 4, 3)
    leaves = (table, *flatten(hx), *weights)

    def run(table, *others):
        states, given = (others[:2], others[2:]) if cell == "lstm" else (others[0], others[1:])
        return STEPS[cell](tokens, states, *given, embedding=table)

    assert gradcheck(run, leaves)
    assert gradgradcheck(run, leaves, fast_mode=True)


@each_step
@pytest.mark.usefixtures("fresh_dynamo")
def test_cells_compile_into_a_graph_for_batches_above_the_tables_length_and_one_for_others(cell):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(STEPS[cell], fullgraph=True, dynamic=True, backend=counter)
    for rows in (7, 9, 12, 3, 2):
        tokens, table, hx, weights = step_case(cell, rows, 4)
        named = {str(i): w for i, w in enumerate(weights)}
        runs = (compiled, STEPS[cell])
        got, expected = (
            token_results(lambda t, h, run=run: run(tokens, h, *weights, embedding=t), table, named, hx)  # noqa: B023
            for run in runs
        )
        assert_same(got, expected)
    assert counter.frame_count <= 2


@each_step
def test_cells_refuse_tokens_that_do_not_fit(cell):
    tokens, table, hx, weights = step_case(cell, 4, 3)
    wrong = [
        (dict(tokens=tokens.view(2, 2)), r"Expected tokens of shape \[B\] with embedding, got \[2, 2\]"),
        (dict(tokens=tokens.float()), "Expected tokens of dtype torch.int64 with embedding, got torch.float32"),
        (dict(tokens=tokens + 3), "expected tokens from 0 to 2, the rows of the table, got"),
        (dict(tokens=tokens[:3]), r"Input batch size 3 doesn't match hidden0 batch size 4"),
        (dict(table=table[:, :4]), r"Expected embedding of shape \[V, 5\], got \[3, 4\]"),
    ]
    for change, message in wrong:
        given = {"tokens": tokens, "table": table, **change}
        for context in (torch.enable_grad, torch.no_grad):
            with context(), pytest.raises(RuntimeError, match=message):
                STEPS[cell](given["tokens"], hx, *weights, embedding=given["table"])


# ------------------------------------------------------------------------------------------------ derivatives


@each_cell
@pytest.mark.parametrize("layout", [(False, False), (True, True)], ids=["time-first", "batch-first-reverse"])
@pytest.mark.parametrize("path", ["function", "operator"])
@pytest.mark.parametrize("recompute", [False, True], ids=["saved", "recomputed"])
def test_derivatives_agree_with_finite_differences(cell, layout, path, recompute):
    args = arguments(cell, (3, 2, 2, 3), requires_grad=True)
    args = args._replace(x=torch.randn(4, 2, dtype=f64, requires_grad=True))
    tokens = torch.tensor([[3, 0], [3, 1], [0, 3]])
    tokens = tokens.t().contiguous() if layout[0] else tokens

    def run(*given):
        rest = iter(given)
        full = [None if t is None else next(rest) for t in args]
        flags = tokens, *layout, recompute
        out = SAVING[cell](*full, *flags) if path == "operator" else FUNCTIONS[cell].apply(cell, *full, *flags)
        return out[: 1 + CELLS[cell].states]

    assert gradcheck(run, args.given())
    assert gradgradcheck(run, args.given(), fast_mode=True)


@each_layer
@pytest.mark.parametrize("V", [4, 50])
def test_derivatives_of_modules_agree_with_finite_differences(kind: Kind, V):
    module = kind.ours(2, 3, 2, bidirectional=True, batch_first=True, dtype=f64)
    tokens = draw(V, 2, 4)

    def run(table):
        return tuple(flatten(module(tokens, embedding=table)))

    table = torch.randn(V, 2, dtype=f64, requires_grad=True)
    assert gradcheck(run, (table,))
    assert gradgradcheck(run, (table,), fast_mode=True)


def loss_of(cell: str, run: Any, tokens: Tensor) -> Any:
    """A function of the table and the weights; run is network.layer, or the reference."""

    def loss(table, *weights):
        states = tuple(table.new_zeros(tokens.shape[1], weights[1].shape[1]) for _ in range(CELLS[cell].states))
        if run is reference.layer:
            return run(cell, F.embedding(tokens, table), states, weights)[0].sin().sum()
        return run(cell, table, states, weights, tokens)[0].sin().sum()

    return loss


@each_cell
def test_transforms_of_torch_func_agree_with_the_reference(cell):
    weights = arguments(cell, (4, 3, 2, 5))[3:]
    tables, tokens = torch.randn(3, 5, 2, dtype=f64), draw(5, 4, 3)
    v = torch.randn_like(tables[0])

    def result(run):
        def loss(table):
            return loss_of(cell, run, tokens)(table, *weights)

        return (
            torch.func.grad(loss)(tables[0]),
            torch.func.vmap(torch.func.grad(loss))(tables),
            torch.func.grad(lambda t: torch.func.grad(loss)(t).sin().sum())(tables[0]),
            torch.func.jvp(loss, (tables[0],), (v,))[1],
            torch.func.jvp(torch.func.grad(loss), (tables[0],), (v,))[1],
        )

    torch.testing.assert_close(result(network.layer), result(reference.layer))


@each_cell
def test_per_sample_gradients_agree_with_one_call_per_sample(cell):
    weights = arguments(cell, (4, 3, 2, 5))[3:]
    table, samples = torch.randn(5, 2, dtype=f64), draw(5, 6, 4, 3)

    def grads(tokens):
        return torch.func.grad(loss_of(cell, network.layer, tokens), argnums=(0, 1, 2))(table, *weights)

    together = torch.func.vmap(grads)(samples)
    for i, tokens in enumerate(samples):
        alone = torch.func.grad(loss_of(cell, reference.layer, tokens), argnums=(0, 1, 2))(table, *weights)
        torch.testing.assert_close(tuple(g[i] for g in together), alone)


@pytest.mark.parametrize(
    "cell, batch_first, recompute",
    [("lstm", True, True), ("gru", False, False), ("gru", True, True), ("rnn_tanh", False, False)],
)
def test_opcheck_passes_for_both_operators(cell, batch_first, recompute):
    args = arguments(cell, (3, 2, 4, 5), requires_grad=True)
    args = args._replace(x=torch.randn(4, 4, dtype=f64, requires_grad=True))
    tokens = draw(4, *((2, 3) if batch_first else (3, 2)))
    torch.library.opcheck(SAVING[cell], (*args, tokens, batch_first, False, recompute))
    with torch.no_grad():
        y, h_n, c_n, saved, c = SAVING[cell](*args, tokens, batch_first, False, recompute)
    grads = torch.randn_like(y), torch.randn_like(h_n), torch.randn_like(c_n) if c_n.numel() else None
    torch.library.opcheck(BACKWARD[cell], (*grads, *args, tokens, y, saved, c, batch_first, False, True, True))


# ------------------------------------------------------------------------------------------------ torch.compile


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("V", [4, 50])
@each_layer
def test_compiles_into_one_graph(kind: Kind, V):
    module = kind.ours(5, 6, 2, dtype=f64, bidirectional=True, batch_first=True, dropout=0.3)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    tokens = draw(V, B, T)
    table = torch.randn(V, 5, dtype=f64, requires_grad=True)
    _, hx = kind.example(module, T, B)

    def run(call):
        return token_results(lambda t, h: call(tokens, h, embedding=t), table, module.named_parameters(), hx)

    assert_same(run(compiled), run(module))


# ------------------------------------------------------------------------------------------------ errors

BAD_TOKENS = [-1, 4, 1 << 40]


@each_cell
@pytest.mark.parametrize("bad", BAD_TOKENS)
def test_a_token_that_is_no_row_of_the_table_is_refused_with_its_value(cell, bad):
    args = arguments(cell, (3, 2, 5, 6))._replace(x=torch.randn(4, 5, dtype=f64))
    tokens = torch.tensor([[0, 1], [3, bad], [2, 2]])
    message = f"expected tokens from 0 to 3, the rows of the table, got {bad}"
    with pytest.raises(RuntimeError, match=message):
        FORWARD[cell](*args, tokens, False, False)
    good = tokens.clamp(0, 3)
    y, h_n, c_n, saved, c = SAVING[cell](*args, good, False, False, False)
    with pytest.raises(RuntimeError, match=message):
        BACKWARD[cell](y, h_n, c_n if c_n.numel() else None, *args, tokens, y, saved, c, False, False, True, True)


@each_layer
@pytest.mark.parametrize("bad", BAD_TOKENS)
@pytest.mark.parametrize("length", [2, 9], ids=["more-rows-than-tokens", "fewer-rows-than-tokens"])
def test_modules_refuse_a_token_that_is_no_row_of_the_table(kind: Kind, bad, length):
    tokens = torch.zeros(length, 1, dtype=torch.int64)
    tokens[1] = bad
    with pytest.raises(RuntimeError, match=f"expected tokens from 0 to 3, the rows of the table, got {bad}"):
        kind.ours(5, 6)(tokens, embedding=torch.randn(4, 5))


@each_layer
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_what_does_not_fit_is_refused_with_the_expected_and_the_given(kind: Kind, grad):
    module, table = kind.ours(5, 6), torch.randn(4, 5)
    weights = list(module.parameters())
    run = getattr(functional, kind.class_name.lower())
    tokens = draw(4, T, B)

    def refused(error, message, call, *args, **kwargs):
        with torch.set_grad_enabled(grad), pytest.raises(error, match=message):
            call(*args, **kwargs)

    for dtype in (torch.int32, torch.float32, torch.bool):
        given = tokens.to(dtype)
        message = rf"Expected tokens of dtype torch.int64 with embedding, got {dtype}"
        refused(RuntimeError, message, module, given, embedding=table)
        refused(RuntimeError, message, run, given, None, weights, embedding=table)
    message = r"input must have 2 dimensions, got 3"
    refused(RuntimeError, message, run, tokens[None], None, weights, embedding=table)
    message = rf"{kind.class_name}: Expected tokens to be 1D or 2D with embedding, got 3D instead"
    refused(ValueError, message, module, tokens[None], embedding=table)
    message = r"Expected embedding of shape \[V, 5\], got \[4, 7\]"
    refused(RuntimeError, message, run, tokens, None, weights, embedding=torch.randn(4, 7))
    refused(RuntimeError, message.replace("4, 7", "5"), run, tokens, None, weights, embedding=torch.randn(5))
    message = r"Expected 5, got 7"
    refused(RuntimeError, message, module, tokens, embedding=torch.randn(4, 7))
    message = r"dtype \(torch.float64\) does not match weight dtype \(torch.float32\)"
    refused(ValueError, message, module, tokens, embedding=table.double())
    message = r"found input tensor of torch.float64 and parameter tensor of torch.float32"
    refused(RuntimeError, message, run, tokens, None, weights, embedding=table.double())
    message = r"found input tensor at cpu and embedding at meta"
    refused(RuntimeError, message, run, tokens, None, weights, embedding=table.to("meta"))
    refused(RuntimeError, "larger than 0", run, tokens[:0], None, weights, embedding=table)
    _, hx = kind.example(module, T, B + 1, dtype=f32)
    refused(
        RuntimeError, r"Expected hidden(\[0\])? size \(1, 3, 6\), got \[1, 4, 6\]", module, tokens, hx, embedding=table
    )


@each_cell
@pytest.mark.parametrize("steps, batch", [(0, 3), (4, 0)], ids=["no-steps", "no-rows"])
def test_no_tokens_give_a_table_gradient_of_zeros(cell, steps, batch):
    args = arguments(cell, (steps, batch, 5, 6))._replace(x=torch.randn(4, 5, dtype=f64))
    tokens = torch.zeros(steps, batch, dtype=torch.int64)
    grads = cotangents(cell, args._replace(x=torch.empty(steps, batch, 5, dtype=f64)), (False, False))
    out = run_operator(cell, args, (False, False), tokens, grads)
    for name in ("dx", "dw_ih", "dw_hh", "db_ih", "db_hh"):
        assert torch.equal(out[name], torch.zeros_like(out[name])), name


@each_layer
def test_an_empty_batch_of_tokens_gives_empty_outputs_and_zero_gradients(kind: Kind):
    module = kind.ours(5, 6, 2, dtype=f64)
    table = torch.randn(4, 5, dtype=f64, requires_grad=True)
    y = module(torch.zeros(T, 0, dtype=torch.int64), embedding=table)[0]
    assert y.shape == (T, 0, 6)
    (grad,) = torch.autograd.grad(y.sum(), table)
    assert torch.equal(grad, torch.zeros_like(table))
