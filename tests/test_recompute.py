"""recompute=True: backward computes the gates again, and nothing but memory and time tells."""

from __future__ import annotations

import pickle

import pytest
import torch
from cases import TOLERANCE, Kind, assert_same, each_dtype, each_layer, f64, results
from op_cases import LAYOUTS, SIZES, arguments, cotangents
from torch.autograd import gradcheck, gradgradcheck

from fusedrnn import functional
from fusedrnn.autograd import FUNCTIONS
from fusedrnn.ops import BACKWARD, CELLS, SAVING

each_cell = pytest.mark.parametrize("cell", CELLS)
each_gated_cell = pytest.mark.parametrize("cell", [cell for cell in CELLS if CELLS[cell].saved])
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda v: f"batch_first={v[0]}-reverse={v[1]}")

# Backward works on about 1024 rows at a time: several pieces, with a last one of another length.
LONG = [(700, 3, 2, 5), (2100, 1, 3, 2), (23, 96, 2, 17), (2, 1100, 1, 3), (1, 2500, 2, 1)]


def both(cell, args, layout, tokens=None):
    """Outputs and gradients with the gates kept, and with the gates computed again."""
    grads = cotangents(cell, args, layout) if tokens is None else []
    if tokens is not None:
        y = torch.randn(*tokens.shape, args.w_hh.shape[1], dtype=args.x.dtype)
        grads = [y, *(torch.randn_like(args.h0) for _ in range(CELLS[cell].states))]
    grads += [None] * (3 - len(grads))
    found = []
    for recompute in (False, True):
        y, h_n, c_n, saved, c = SAVING[cell](*args, tokens, *layout, recompute)
        assert (saved.numel() == 0) == (recompute or not CELLS[cell].saved)
        back = BACKWARD[cell](*grads, *args, tokens, y, saved, c, *layout, True, True)
        found.append(dict(enumerate((y, h_n, c_n, *back))))
    return found


@each_cell
@each_layout
@each_dtype
def test_outputs_are_the_same_to_the_bit_and_gradients_to_rounding(cell, layout, dtype):
    for size in [*SIZES, *LONG]:
        kept, again = both(cell, arguments(cell, size, dtype, layout[0]), layout)
        for i in range(3):
            assert torch.equal(kept[i], again[i]), size
        assert_same(again, kept, dtype, TOLERANCE[dtype] / 10)


@each_cell
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@each_layout
def test_gradients_are_the_same_with_tokens(cell, layout, bias):
    V = 5
    for T, B, I, H in [(7, 3, 4, 17), *LONG]:
        args = arguments(cell, (T, B, I, H), bias=bias)._replace(x=torch.randn(V, I, dtype=f64))
        tokens = torch.randint(V, (B, T) if layout[0] else (T, B))
        kept, again = both(cell, args, layout, tokens)
        assert_same(again, kept, f64, TOLERANCE[f64] / 10)


@each_cell
def test_results_are_repeatable_for_each_number_of_threads_and_agree(cell):
    args = arguments(cell, (40, 64, 9, 65))
    alone = both(cell, args, (False, True))[1]
    for threads in (2, 3):
        torch.set_num_threads(threads)
        torch.manual_seed(1)
        together = both(cell, args, (False, True))[1]
        torch.manual_seed(1)
        repeated = both(cell, args, (False, True))[1]
        for i, tensor in together.items():
            assert torch.equal(tensor, repeated[i])
        assert torch.equal(alone[0], together[0])


@pytest.mark.parametrize(
    "options", [{}, {"batch_first": True, "bidirectional": True, "num_layers": 2, "dropout": 0.3}], ids=str
)
@each_layer
def test_modules_give_the_results_of_nn(kind: Kind, options):
    theirs = kind.theirs(3, 5, dtype=f64, **options)
    ours = kind.ours(3, 5, dtype=f64, recompute=True, **options)
    ours.load_state_dict(theirs.state_dict())
    for T, B in ((4, 3), (4, None), (700, 3)):
        x, hx = kind.example(ours, T=T, B=B)
        assert_same(results(ours, x, hx, seed=5), results(theirs, x, hx, seed=5))


@each_cell
@pytest.mark.parametrize("batch_first, reverse", [(False, False), (True, True)])
def test_opcheck_passes_with_recompute(cell, batch_first, reverse):
    args = arguments(cell, (3, 2, 4, 5), batch_first=batch_first, requires_grad=True)
    torch.library.opcheck(SAVING[cell], (*args, None, batch_first, reverse, True))


@each_gated_cell
def test_derivatives_agree_with_finite_differences(cell):
    args = arguments(cell, (3, 2, 2, 3), requires_grad=True)

    def run(*given):
        rest = iter(given)
        full = [None if t is None else next(rest) for t in args]
        return FUNCTIONS[cell].apply(cell, *full, None, False, False, True)[: 1 + CELLS[cell].states]

    assert gradcheck(run, args.given())
    assert gradgradcheck(run, args.given(), fast_mode=True)


def kept_bytes(run) -> int:
    """What the graph of run() keeps for backward, each storage once."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = run()  # alive while it is counted, so that no storage has the address of another
        total = sum(storages.values())
    assert out[0].requires_grad
    return total


@pytest.mark.parametrize("name, gates", [("lstm", 4), ("gru", 4), ("rnn", 0)])
def test_the_graph_keeps_less_by_just_the_gates(name, gates):
    T, B, I, H = 50, 4, 3, 16
    theirs = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[name](I, H, 2)
    x = torch.randn(T, B, I)

    def kept(recompute):
        run = getattr(functional, name)
        return kept_bytes(lambda: run(x, None, list(theirs.parameters()), num_layers=2, recompute=recompute))

    assert kept(False) - kept(True) == 2 * gates * T * B * H * x.element_size()


@pytest.mark.usefixtures("fresh_dynamo")
@each_layer
def test_compiles_into_one_graph(kind: Kind):
    module = kind.ours(3, 4, 2, dtype=f64, recompute=True, bidirectional=True)
    x, hx = kind.example(module)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert_same(results(compiled, x, hx), results(module, x, hx))


@each_layer
def test_the_choice_is_kept_by_pickle_and_not_in_the_state(kind: Kind):
    module = kind.ours(3, 4, recompute=True)
    assert pickle.loads(pickle.dumps(module)).recompute
    assert module.state_dict().keys() == kind.theirs(3, 4).state_dict().keys()
    state = module.__dict__.copy()
    del state["recompute"]  # as in pickles of earlier versions
    older = type(module).__new__(type(module))
    older.__setstate__(state)
    assert older.recompute is False
