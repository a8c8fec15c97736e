"""The oracle of the other tests, against nn.*: outputs, states and every gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fusedrnn import reference

MODULES = [
    ("LSTM", {}),
    ("GRU", {}),
    ("RNN", {"nonlinearity": "tanh"}),
    ("RNN", {"nonlinearity": "relu"}),
]
OPTIONS = [
    {},
    {"num_layers": 3},
    {"batch_first": True},
    {"bidirectional": True, "bias": False},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
]


@pytest.mark.parametrize("name, variant", MODULES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("given", [False, True], ids=["no-hx", "hx"])
def test_reference_modules_agree_with_nn(name, variant, options, given):
    theirs = getattr(nn, name)(3, 5, dtype=torch.float64, **variant, **options)
    ours = getattr(reference, name)(3, 5, dtype=torch.float64, **variant, **options)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    B = x.shape[0 if theirs.batch_first else 1]
    size = (theirs.num_layers * (2 if theirs.bidirectional else 1), B, 5)
    states = tuple(
        torch.randn(size, dtype=torch.float64, requires_grad=True) for _ in range(2 if name == "LSTM" else 1)
    )
    hx = None if not given else states if len(states) == 2 else states[0]

    def results(module):
        y, last = module(x, hx)
        last = last if isinstance(last, tuple) else (last,)
        loss = y.sin().sum() + sum((i + 2) * s.cos().sum() for i, s in enumerate(last))
        leaves = [x, *(states if given else ()), *module.parameters()]
        return y, last, torch.autograd.grad(loss, leaves)

    torch.testing.assert_close(results(ours), results(theirs))


@pytest.mark.parametrize("name, variant", MODULES, ids=str)
@pytest.mark.parametrize("batch_first", [False, True])
def test_dropout_draws_the_masks_of_nn(name, variant, batch_first):
    options = {"num_layers": 2, "dropout": 0.5, "batch_first": batch_first, "dtype": torch.float64}
    theirs = getattr(nn, name)(3, 5, **variant, **options)
    ours = getattr(reference, name)(3, 5, **variant, **options)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    torch.manual_seed(1)
    expected = theirs(x)
    torch.manual_seed(1)
    torch.testing.assert_close(ours(x), expected)


@pytest.mark.parametrize("cell", sorted(reference.STEPS.keys() - {"gru_reset_before"}))  # which nn has not
def test_a_step_agrees_with_the_cell_of_nn(cell):
    G = {"lstm": 4, "gru": 3}.get(cell, 1)
    x, h, c = (torch.randn(2, n, dtype=torch.float64) for n in (3, 5, 5))
    weights = [torch.randn(size, dtype=torch.float64) for size in ((G * 5, 3), (G * 5, 5), (G * 5,), (G * 5,))]
    expected = {
        "lstm": lambda: torch.lstm_cell(x, (h, c), *weights),
        "gru": lambda: (torch.gru_cell(x, h, *weights),),
        "rnn_tanh": lambda: (torch.rnn_tanh_cell(x, h, *weights),),
        "rnn_relu": lambda: (torch.rnn_relu_cell(x, h, *weights),),
    }[cell]()
    actual = reference.STEPS[cell](x, (h, c) if cell == "lstm" else (h,), *weights)
    torch.testing.assert_close(actual, tuple(expected))


def test_an_lstm_of_separate_gates_over_h_and_x_maps_onto_the_fused_one():
    """Gates written as f, i, c, o over [h, x] concatenated are the same LSTM with its weights cut and reordered."""
    H, I = 4, 3
    gates = {name: nn.Linear(H + I, H).double() for name in ("forget", "input", "cell", "output")}
    h, c = torch.randn(2, H).double(), torch.randn(2, H).double()
    xs = torch.randn(5, 2, I).double()
    hx, outputs = (h, c), []
    for x in xs:
        joined = torch.cat([h, x], 1)
        c = gates["forget"](joined).sigmoid() * c + gates["input"](joined).sigmoid() * gates["cell"](joined).tanh()
        h = gates["output"](joined).sigmoid() * c.tanh()
        outputs.append(h)
    order = [gates[name] for name in ("input", "forget", "cell", "output")]
    w_hh = torch.cat([g.weight[:, :H] for g in order])
    w_ih = torch.cat([g.weight[:, H:] for g in order])
    bias = torch.cat([g.bias for g in order])
    y, states = reference.layer("lstm", xs, hx, (w_ih, w_hh, bias, torch.zeros_like(bias)))
    torch.testing.assert_close(y, torch.stack(outputs))
    torch.testing.assert_close(states, (h, c))


def test_an_unknown_nonlinearity_is_refused():
    with pytest.raises(ValueError, match="expected 'tanh' or 'relu', got 'gelu'"):
        reference.RNN(3, 4, nonlinearity="gelu")
