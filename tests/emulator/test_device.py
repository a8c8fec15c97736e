"""The twins of csrc/cuda/device.cuh against numpy, and kernels that are made of them."""

from __future__ import annotations

import numpy as np
import pytest
from emulator.toolchain import ORDERS, Found, Unwritten


def bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """Of values that bfloat16 holds."""
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def pairs(bits: np.ndarray) -> np.ndarray:
    """Two neighbours of the last axis in a register."""
    return np.ascontiguousarray(bits).view(np.uint32)


def integers(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Numbers that every type holds, with sums that are exact in any order."""
    return np.random.default_rng(seed).integers(-100, 100, shape).astype(np.float32)


def fragments_of_16_bits(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Registers of a [16][K] and b [K][8], by axes: row = 8 i + g and column = 8 j + 2 q + e are element e of
    register i + 2 j of lane 4 g + q."""
    depth = a.shape[1] // 8
    registers_a = pairs(a.reshape(2, 8, depth, 4, 2).transpose(1, 3, 2, 0, 4))
    registers_b = pairs(b.T.reshape(8, depth, 4, 2).transpose(0, 2, 1, 3))
    return registers_a.reshape(32, -1), registers_b.reshape(32, -1)


def fragments_of_32_bits(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same for TF32: row = 8 i + g and column = 4 j + q are register i + 2 j."""
    registers_a = a.reshape(2, 8, 2, 4).transpose(1, 3, 2, 0).reshape(32, 4)
    registers_b = b.T.reshape(8, 2, 4).transpose(0, 2, 1).reshape(32, 2)
    return np.ascontiguousarray(registers_a), np.ascontiguousarray(registers_b)


def registers_of_d(d: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(d.reshape(2, 8, 4, 2).transpose(1, 2, 0, 3)).reshape(32, 4)


PRODUCTS = [
    ("half", 16, lambda v: v.astype(np.float16).view(np.uint16), fragments_of_16_bits),
    ("bfloat16", 16, bfloat16_bits, fragments_of_16_bits),
    ("half", 8, lambda v: v.astype(np.float16).view(np.uint16), fragments_of_16_bits),
    ("tf32", 8, lambda v: v.view(np.uint32), fragments_of_32_bits),
]


@pytest.mark.parametrize("kind", range(len(PRODUCTS)), ids=[f"{p[0]}-{p[1]}" for p in PRODUCTS])
def test_a_product_follows_the_documented_lanes(emulator, kind):
    _, depth, bits, fragments = PRODUCTS[kind]
    a, b, c = integers((16, depth), 1), integers((depth, 8), 2), integers((16, 8), 3)
    d = registers_of_d(c)
    emulator.launch("multiply_registers", kind, *fragments(bits(a), bits(b)), d)
    assert (d == registers_of_d(c + a @ b)).all()


def test_a_product_of_tf32_does_not_look_at_the_lower_bits(emulator):
    a, b = integers((16, 8), 1), integers((8, 8), 2)
    registers_a, registers_b = fragments_of_32_bits(a.view(np.uint32), b.view(np.uint32))
    d = np.zeros((32, 4), np.float32)
    emulator.launch("multiply_registers", 3, registers_a | 0x1FFF, registers_b | 0x1FFF, d)
    assert (d == registers_of_d(a @ b)).all()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("number", [1, 2, 4])
def test_ldmatrix_gives_each_lane_its_two_values_of_each_matrix(emulator, number, transposed):
    matrices = np.random.default_rng(0).integers(0, 1 << 16, (number, 8, 8)).astype(np.uint16)
    registers = np.zeros((number, 32), np.uint32)
    emulator.launch("load_matrices", number, transposed, matrices, Unwritten(registers))
    seen = matrices.transpose(0, 2, 1) if transposed else matrices
    assert (registers == pairs(seen).reshape(number, 32)).all()


@pytest.mark.parametrize("size", [4, 8, 16])
def test_asynchronous_copies_of_each_size(emulator, size):
    source = np.random.default_rng(0).integers(0, 256, 32 * size).astype(np.uint8)
    copy = np.zeros_like(source)
    emulator.launch("copy_bytes", size, source, Unwritten(copy))
    assert (copy == source).all()


def test_rounding_to_tf32_is_to_nearest_with_ties_away_from_zero(emulator):
    one = 1 << 10  # a unit of the last place of TF32, at 1 + 2^-10
    values = [1.0, one + 0.5, one + 0.49, one + 0.51, one + 1.5, -(one + 0.5), np.inf, -np.inf, np.nan, 3e38, 0.0]
    x = np.resize(np.array(values, np.float32), 32)
    bits = np.zeros(32, np.uint32)
    emulator.launch("tf32_bits", x, Unwritten(bits))
    expected = [1.0, one + 1, one, one + 1, one + 2, -(one + 1), np.inf, -np.inf, np.nan]
    rounded = bits.view(np.float32)
    np.testing.assert_array_equal(rounded[: len(expected)], np.array(expected, np.float32))
    assert not (bits[rounded == rounded] & 0x1FFF).any()


@pytest.mark.parametrize("shape", [(32, 8, 16), (64, 24, 48), (32, 16, 80)])
@pytest.mark.parametrize("name", ["matmul_half", "matmul_bfloat16"])
def test_a_product_of_matrices_from_copies_loads_and_products(emulator, name, shape):
    M, N, K = shape
    a, b = integers((M, K), 1), integers((N, K), 2)
    stored = [v.astype(np.float16) if name == "matmul_half" else bfloat16_bits(v) for v in (a, b)]
    wrong_layout = [False] if name == "matmul_half" else []
    for order in ORDERS:
        c = np.zeros((M, N), np.float32)
        emulator.launch(name, *stored, Unwritten(c), M, N, K, *wrong_layout, order=order, preempt=100)
        assert (c == a @ b.T).all()


def test_registers_in_the_wrong_order_give_a_wrong_product(emulator):
    a, b, c = integers((32, 16), 1), integers((8, 16), 2), np.zeros((32, 8), np.float32)
    emulator.launch("matmul_half", a.astype(np.float16), b.astype(np.float16), Unwritten(c), 32, 8, 16, True)
    assert (c != a @ b.T).any()


def test_sm_75_multiplies_and_copies_in_its_own_way(turing):
    a, b, c = integers((64, 48), 1), integers((8, 48), 2), np.zeros((64, 8), np.float32)
    turing.launch("matmul_half", a.astype(np.float16), b.astype(np.float16), Unwritten(c), 64, 8, 48, False)
    assert (c == a @ b.T).all()
    # A copy that is done when it returns needs no wait; the barrier it does need.
    case, x, y = turing.module.case_names().index, np.arange(256, dtype=np.float32), np.zeros(256, np.float32)
    turing.launch("run_case", case("no_wait"), x, y, None)
    assert (y[:64] == x[63::-1]).all()
    with pytest.raises(Found, match=r"racecheck: cases\.cu"):
        turing.launch("run_case", case("no_barrier_after_wait"), x, y, None)
    bits = bfloat16_bits(a)
    with pytest.raises(Found, match=r"trap: matmul\.cu"):
        turing.launch("matmul_bfloat16", bits, bits, Unwritten(c), 32, 8, 16)
