"""csrc/cuda/math.cuh and the cells on scalars, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from emulator.test_device import bfloat16_bits
from emulator.toolchain import Unwritten


def functions(emulator, x: np.ndarray) -> np.ndarray:
    y = np.zeros((4, x.size), x.dtype)
    emulator.launch("functions_float" if x.dtype == np.float32 else "functions_double", x, Unwritten(y), x.size)
    return y


def sample(dtype: type) -> np.ndarray:
    tiny, largest = (-80, 4.5) if dtype == np.float32 else (-500, 6.6)
    magnitudes = np.exp(np.linspace(tiny, largest, 3000))
    return np.concatenate([-magnitudes, magnitudes]).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sigmoid_and_tanh_are_within_a_few_units_of_the_last_place(emulator, dtype):
    x = sample(dtype)
    y = functions(emulator, x)
    wide = x.astype(np.longdouble)
    e = np.exp(-np.abs(wide))
    for actual, right in ((y[0], np.where(wide < 0, e, 1) / (1 + e)), (y[1], np.tanh(wide))):
        ulp = np.spacing(np.abs(right).astype(dtype)).astype(np.longdouble)
        assert np.max(np.abs(actual - right) / ulp) <= 3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_functions_at_the_edges(emulator, dtype):
    x = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 1e4, -1e4], dtype)
    sigmoid, tanh, relu, where = functions(emulator, x)
    np.testing.assert_array_equal(sigmoid, np.array([1, 0, np.nan, 0.5, 0.5, 1, 0], dtype))
    np.testing.assert_array_equal(tanh, np.array([1, -1, np.nan, 0, 0, 1, -1], dtype))
    np.testing.assert_array_equal(relu, np.array([np.inf, 0, np.nan, 0, 0, 1e4, 0], dtype))
    np.testing.assert_array_equal(where, np.array([2, 0, 2, 0, 0, 2, 0], dtype))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm(x, r, h, c):
    i, f, g, o = (np.tanh(v) if k == 2 else sigmoid(v) for k, v in enumerate(x + r))
    c = f * c + i * g
    return o * np.tanh(c), c


def gru(x, r, h, c):
    reset, z = sigmoid(x[0] + r[0]), sigmoid(x[1] + r[1])
    n = np.tanh(x[2] + reset * r[2])
    return n + z * (h - n), c


CELLS = {
    "lstm": (4, lstm),
    "gru": (3, gru),
    "rnn_tanh": (1, lambda x, r, h, c: (np.tanh(x[0] + r[0]), c)),
    "rnn_relu": (1, lambda x, r, h, c: ((x[0] + r[0]) * (np.real(x[0] + r[0]) > 0), c)),
}
TYPES = {
    "float64": (lambda v: v, lambda v: v, 1e-12),
    "float32": (lambda v: v.astype(np.float32), lambda v: v.astype(np.float64), 2e-6),
    "float16": (lambda v: v.astype(np.float16), lambda v: v.astype(np.float64), 2e-3),
    "bfloat16": (bfloat16_bits, lambda v: (v.astype(np.uint32) << 16).view(np.float32).astype(np.float64), 1.6e-2),
}


def gradient(f, values: list[np.ndarray], which: int, weights: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Of sum(weights * f(*values)) by one of the values, by complex steps, whose error is of rounding alone."""
    result = np.empty(values[which].shape)
    rows = result.reshape(-1, result.shape[-1])
    for row in range(len(rows)):
        moved = [v.astype(complex) for v in values]
        moved[which].reshape(rows.shape)[row] += 1e-30j
        rows[row] = sum((w * out).imag / 1e-30 for w, out in zip(weights, f(*moved), strict=True))
    return result


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_cells_run_forward_and_back_on_scalars(emulator, cell, type_name):
    n = 64
    (gates, formula), (store, load, tolerance) = CELLS[cell], TYPES[type_name]
    random = np.random.default_rng(0)
    # Values that bfloat16 holds, and no sum at the kink of relu.
    draw = lambda *shape: (random.integers(-64, 64, shape) * 2 + 1) / 64  # noqa: E731
    x, r, states, grads = draw(gates, n), draw(gates, n) * 2, draw(2, n), draw(2, n)
    if cell != "lstm":
        grads[1] = 0
    stored = [store(v) for v in (x, r, states.copy(), grads.copy())]
    deltas = store(np.zeros((gates, n)))
    types = ["float64", "float32", "float16", "bfloat16"]
    emulator.launch("cell_step", [*CELLS].index(cell), types.index(type_name), *stored, Unwritten(deltas), n)

    values = [x, r, states[0], states[1]]
    h, c = formula(*values)
    np.testing.assert_allclose(load(stored[2]), [h, c], rtol=tolerance, atol=tolerance)
    right = gradient(formula, values, 0, (grads[0], grads[1]))
    np.testing.assert_allclose(load(deltas), right.reshape(gates, n), rtol=tolerance, atol=tolerance)
