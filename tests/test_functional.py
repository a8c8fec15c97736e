"""The functional API: against nn.*, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fusedrnn import functional

# functional call, nn module, extra arguments of both
LAYERS = {
    "lstm": (functional.lstm, nn.LSTM, {}),
    "gru": (functional.gru, nn.GRU, {}),
    "rnn_tanh": (functional.rnn, nn.RNN, {"nonlinearity": "tanh"}),
    "rnn_relu": (functional.rnn, nn.RNN, {"nonlinearity": "relu"}),
}
CELLS = {
    "lstm": (functional.lstm_cell, torch.lstm_cell, 4),
    "gru": (functional.gru_cell, torch.gru_cell, 3),
    "rnn_tanh": (functional.rnn_tanh_cell, torch.rnn_tanh_cell, 1),
    "rnn_relu": (functional.rnn_relu_cell, torch.rnn_relu_cell, 1),
}
each_layer = pytest.mark.parametrize("name", LAYERS)
each_cell = pytest.mark.parametrize("name", CELLS)


def state(name, *size, requires_grad=False):
    draw = [torch.randn(size, dtype=torch.float64, requires_grad=requires_grad) for _ in range(2)]
    return tuple(draw) if name == "lstm" else draw[0]


def tensors(tree):
    return [tree] if isinstance(tree, torch.Tensor) else [t for branch in tree for t in tensors(branch)]


@each_layer
@pytest.mark.parametrize(
    "options",
    [{}, {"num_layers": 2}, {"bidirectional": True, "batch_first": True}, {"num_layers": 3, "bidirectional": True}],
    ids=str,
)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_layers_agree_with_nn_given_its_parameters(name, options, bias):
    run, theirs, extra = LAYERS[name]
    module = theirs(3, 5, bias=bias, dtype=torch.float64, **options, **extra)
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    count = module.num_layers * (2 if module.bidirectional else 1)
    hx = state(name, count, x.shape[0 if module.batch_first else 1], 5)
    torch.testing.assert_close(run(x, hx, list(module.parameters()), **options, **extra), module(x, hx))
    torch.testing.assert_close(run(x, None, list(module.parameters()), **options, **extra), module(x))


@each_layer
@pytest.mark.parametrize("batch_first", [False, True])
def test_dropout_draws_the_masks_of_nn(name, batch_first):
    run, theirs, extra = LAYERS[name]
    options = {"num_layers": 2, "dropout": 0.5, "batch_first": batch_first}
    module = theirs(3, 5, dtype=torch.float64, **options, **extra)
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    torch.manual_seed(1)
    expected = module(x)
    torch.manual_seed(1)
    torch.testing.assert_close(run(x, None, list(module.parameters()), training=True, **options, **extra), expected)
    still = run(x, None, list(module.parameters()), **options, **extra)
    torch.testing.assert_close(still, module.eval()(x))


@each_cell
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_cells_agree_with_torch_in_outputs_and_gradients(name, bias):
    ours, theirs, G = CELLS[name]
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    hx = state(name, 2, 5, requires_grad=True)
    sizes = [(G * 5, 3), (G * 5, 5), (G * 5,), (G * 5,)][: 4 if bias else 2]
    weights = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes]

    def results(cell):
        out = tensors(cell(x, hx, *weights))
        return out, torch.autograd.grad(sum(t.sin().sum() for t in out), [x, *tensors(hx), *weights])

    torch.testing.assert_close(results(ours), results(theirs))


@each_cell
@pytest.mark.parametrize("given", [0, 1], ids=["b_ih", "b_hh"])
def test_one_bias_alone_agrees_with_torch(name, given):
    ours, theirs, G = CELLS[name]
    x, hx = torch.randn(2, 3, dtype=torch.float64), state(name, 2, 5)
    w_ih, w_hh, b = (
        torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((G * 5, 3), (G * 5, 5), (G * 5,))
    )
    biases = [None, None]
    biases[given] = b

    def results(cell, biases):
        out = tensors(cell(x, hx, w_ih, w_hh, *biases))
        return out, torch.autograd.grad(sum(t.sin().sum() for t in out), [w_ih, w_hh, b])

    zero = torch.zeros_like(b)
    expected = results(theirs, [zero if t is None else t for t in biases])
    torch.testing.assert_close(results(ours, biases), expected)


@each_layer
def test_a_sequence_in_pieces_gives_the_outputs_and_gradients_of_the_whole(name):
    run, theirs, extra = LAYERS[name]
    weights = list(theirs(3, 5, 2, dtype=torch.float64, **extra).parameters())
    x = torch.randn(9, 2, 3, dtype=torch.float64, requires_grad=True)

    def whole():
        return run(x, None, weights, num_layers=2, **extra)

    def pieces():
        hx, ys = None, []
        for piece in x.split([2, 1, 6]):
            y, hx = run(piece, hx, weights, num_layers=2, **extra)
            ys.append(y)
        return torch.cat(ys), hx

    def with_gradients(out):
        return out, torch.autograd.grad(sum(t.sin().sum() for t in tensors(out)), [x, *weights])

    torch.testing.assert_close(with_gradients(pieces()), with_gradients(whole()))


@each_layer
def test_detaching_the_state_cuts_the_gradient_exactly_there(name):
    run, theirs, extra = LAYERS[name]
    weights = list(theirs(3, 5, dtype=torch.float64, **extra).parameters())
    x = torch.randn(6, 2, 3, dtype=torch.float64, requires_grad=True)
    _, hx = run(x[:4], None, weights, **extra)
    hx = tuple(s.detach() for s in hx) if name == "lstm" else hx.detach()
    y, _ = run(x[4:], hx, weights, **extra)
    (grad,) = torch.autograd.grad(y.sin().sum(), x)
    assert not grad[:4].any()
    window = x[4:].detach().requires_grad_()
    (alone,) = torch.autograd.grad(run(window, hx, weights, **extra)[0].sin().sum(), window)
    assert torch.equal(grad[4:], alone)


def test_the_number_of_weights_is_checked():
    x = torch.randn(2, 1, 3)
    with pytest.raises(RuntimeError, match="expected 4 weights, or 8 with biases, for 2 layers and directions, got 5"):
        functional.gru(x, None, [torch.randn(9, 3)] * 5, num_layers=2)


def test_an_unknown_nonlinearity_is_refused():
    with pytest.raises(ValueError, match="Unknown nonlinearity 'gelu'"):
        functional.rnn(torch.randn(2, 1, 3), None, [torch.randn(4, 3), torch.randn(4, 4)], nonlinearity="gelu")


@pytest.mark.parametrize("x, message", [((2, 3), "must have 3 dimensions, got 2"), ((0, 1, 3), "larger than 0")])
def test_input_of_a_wrong_shape_is_refused(x, message):
    with pytest.raises(RuntimeError, match=message):
        functional.gru(torch.randn(x), None, [torch.randn(12, 3), torch.randn(12, 4)])
