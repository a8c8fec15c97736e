"""csrc/cuda/grid.cuh, the persistent kernel: every cell, type, direction and layout, against float64."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from emulator import toolchain
from emulator.conftest import KERNELS
from emulator.test_device import bfloat16_bits
from emulator.toolchain import Emulator, Unwritten

TYPES = ["float", "tf32", "half", "bfloat16"]
CELLS = {"lstm": (4, 4, 4, 0), "gru": (3, 4, 4, 1), "rnn_tanh": (1, 0, 1, 0), "rnn_relu": (1, 0, 1, 0)}
SOURCES = [folder / f"grid_{name}.cu" for folder in (KERNELS, toolchain.SOURCE / "csrc" / "cuda") for name in TYPES]
TESTED, NARROW, WIDE, SHIPPED = range(4)  # shapes, as grid_cases.h numbers them
EPS = {"float": 2.0**-23, "tf32": 2.0**-10, "half": 2.0**-10, "bfloat16": 2.0**-7}


@functools.cache
def attempt(build: str, architecture: int | None) -> Emulator | Exception:
    defines = [f"-DFUSEDRNN_EMULATED_ARCH={architecture}"] if architecture else []
    try:
        return Emulator(toolchain.compile_module(build, SOURCES, KERNELS / "grid_bindings.cpp", defines))
    except (toolchain.Unavailable, RuntimeError) as error:
        return error


def load(build: str, architecture: int | None = None) -> Emulator:
    if not (toolchain.SOURCE / "csrc").exists():
        pytest.skip("no csrc/ beside tests/: not a source tree")
    made = attempt(build, architecture)
    if isinstance(made, toolchain.Unavailable):
        pytest.skip(str(made))
    if isinstance(made, Exception):
        raise made
    return made


@dataclass(frozen=True)
class Case:
    """A layer, and how it is laid out over a GPU."""

    cell: str
    type: str = "float"
    T: int = 3
    B: int = 3
    H: int = 33
    reverse: bool = False
    batch_first: bool = False
    bare: bool = False  # null wherever a pointer may be
    shape: int = TESTED
    blocks: int = 3
    shared: int = 48 << 10


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def store(values: np.ndarray, type: str) -> np.ndarray:
    if type == "bfloat16":
        return np.ascontiguousarray(bfloat16_bits(np.ascontiguousarray(values, np.float32)))
    return np.ascontiguousarray(values, np.float16 if type == "half" else np.float32)


def widen(stored: np.ndarray) -> np.ndarray:
    if stored.dtype == np.uint16:
        return (stored.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return stored.astype(np.float64)


def forward_step(cell: str, x, r, h, c):
    """One step in float64: the states and what is saved."""
    if cell == "lstm":
        i, f, g, o = (sigmoid(x[k] + r[k]) if k != 2 else np.tanh(x[k] + r[k]) for k in range(4))
        c = f * c + i * g
        return o * np.tanh(c), c, [i, f, g, o]
    if cell == "gru":
        reset, z = sigmoid(x[0] + r[0]), sigmoid(x[1] + r[1])
        n = np.tanh(x[2] + reset * r[2])
        return n + z * (h - n), c, [reset, z, n, r[2]]
    return (np.tanh if cell == "rnn_tanh" else lambda v: np.maximum(v, 0))(x[0] + r[0]), c, []


def backward_step(cell: str, saved, y, h_prev, c, c_prev, dh, dc):
    """One step back in float64: deltas, the part of dh that does not pass w_hh, dc."""
    if cell == "lstm":
        i, f, g, o = saved
        tc = np.tanh(c)
        dc = dc + dh * o * (1 - tc**2)
        return [dc * g * i * (1 - i), dc * c_prev * f * (1 - f), dc * i * (1 - g**2), dh * tc * o * (1 - o)], 0, dc * f
    if cell == "gru":
        r, z, n, rn = saved
        dn = dh * (1 - z) * (1 - n**2)
        return [dn, dn * rn * r * (1 - r), dh * (h_prev - n) * z * (1 - z), dn * r], dh * z, 0
    return [dh * (1 - y**2) if cell == "rnn_tanh" else dh * (y > 0)], 0, 0


class Layer:
    """Tensors of a case in [T, B, ...] float64, as its type can hold them, and what float64 makes of them."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.G, self.saved_count, self.deltas, self.first_delta = CELLS[case.cell]
        T, B, H, G = case.T, case.B, case.H, self.G
        random = np.random.default_rng(7)
        draw = lambda *shape: widen(store(random.uniform(-1, 1, shape), case.type))  # noqa: E731
        self.x, self.w = draw(T, B, G * H), widen(store(draw(G * H, H) / np.sqrt(H), case.type))
        self.b_ih, self.b_hh, self.h0, self.c0 = draw(G * H), draw(G * H), draw(B, H), draw(B, H)
        self.dy, self.dh_n, self.dc_n = draw(T, B, H), draw(B, H), draw(B, H)
        if case.bare:
            for name in ("b_ih", "b_hh", "h0", "c0", "dy", "dc_n"):
                setattr(self, name, np.zeros_like(getattr(self, name)))
        self.order = list(range(T))[:: -1 if case.reverse else 1]

    def gates(self, v: np.ndarray) -> list[np.ndarray]:
        return np.split(v, v.shape[-1] // self.case.H, -1)

    def forward(self) -> dict[str, np.ndarray]:
        case = self.case
        h, c = self.h0, self.c0
        y, cs = np.zeros_like(self.dy), np.zeros_like(self.dy)
        saved = np.zeros((case.T, case.B, self.saved_count * case.H))
        for t in self.order:
            x, r = self.gates(self.x[t] + self.b_ih), self.gates(h @ self.w.T + self.b_hh)
            h, c, kept = forward_step(case.cell, x, r, h, c)
            y[t], cs[t] = h, c
            if kept:
                saved[t] = np.concatenate(kept, -1)
        found = {"y": y, "h_n": h}
        if case.cell == "lstm":
            found |= {"c": cs, "c_n": c}
        return found | ({"saved": saved} if self.saved_count else {})

    def backward(self, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        case, H = self.case, self.case.H
        delta = np.zeros((case.T, case.B, self.deltas * H))
        through, direct, dc = self.dh_n, 0, self.dc_n
        for k in reversed(range(case.T)):
            t = self.order[k]
            before = lambda name, start: given[name][self.order[k - 1]] if k else start  # noqa: B023, E731
            c, c_prev = (given["c"][t], before("c", self.c0)) if "c" in given else (None, None)
            dh = through + direct + self.dy[t]
            saved = self.gates(given["saved"][t]) if "saved" in given else []
            d, direct, dc = backward_step(case.cell, saved, given["y"][t], before("y", self.h0), c, c_prev, dh, dc)
            delta[t] = np.concatenate(d, -1)
            start = self.first_delta * H
            through = delta[t][:, start : start + self.G * H] @ self.w
        found = {"delta": delta, "dh0": through + direct}
        return found | ({"dc0": dc + np.zeros_like(self.h0)} if case.cell == "lstm" else {})

    # -------------------------------------------------------------------------------------------- on the emulator

    def out(self, *shape: int) -> np.ndarray:
        return store(np.zeros(shape), self.case.type)

    def laid_out(self, v: np.ndarray) -> np.ndarray:
        return store(v.swapaxes(0, 1) if self.case.batch_first else v, self.case.type)

    def steps(self, stored: np.ndarray) -> np.ndarray:
        return widen(stored).swapaxes(0, 1) if self.case.batch_first else widen(stored)

    def plan(self, emulator: Emulator, backward: bool) -> dict[str, Any]:
        case = self.case
        size = 4 if case.type in ("float", "tf32") else 2
        return emulator.module.plan(case.shape, case.blocks, case.shared, case.B, case.H, self.G, size, backward)

    def launch(self, emulator: Emulator, name: str, *tensors: Any, **schedule: Any) -> None:
        case, plan = self.case, self.plan(emulator, name == "grid_backward")
        assert plan["fits"]
        numbers = [TYPES.index(case.type), [*CELLS].index(case.cell), case.shape, case.blocks, case.shared]
        sizes = [case.T, case.B, case.H, case.reverse, case.batch_first]
        workspace = Unwritten(np.zeros(plan["workspace_bytes"], np.uint8))
        emulator.launch(name, *numbers, *sizes, *tensors, workspace, **schedule)

    def optional(self, v: np.ndarray) -> np.ndarray | None:
        return None if self.case.bare else store(v, self.case.type)

    def run_forward(self, emulator: Emulator, **schedule: Any) -> dict[str, np.ndarray]:
        case = self.case
        T, B, H = case.T, case.B, case.H
        shape = (B, T) if case.batch_first else (T, B)
        lstm, saved = case.cell == "lstm", self.saved_count > 0
        y, h_n = self.out(*shape, H), self.out(B, H)
        c, c_n = (self.out(*shape, H), self.out(B, H)) if lstm else (None, None)
        kept = self.out(*shape, self.saved_count * H) if saved and not case.bare else None
        if case.bare:
            c = None
        start = [self.optional(self.h0), self.optional(self.c0) if lstm else None]
        weights = [store(self.w, case.type), self.optional(self.b_ih), self.optional(self.b_hh)]
        outputs = [v if v is None else Unwritten(v) for v in (y, c, kept, h_n, c_n)]
        args = [self.laid_out(self.x), *outputs[:3], *start, *outputs[3:], *weights]
        self.launch(emulator, "grid_forward", *args, **schedule)
        found = {"y": self.steps(y), "h_n": widen(h_n)}
        if lstm:
            found["c_n"] = widen(c_n)
        if c is not None:
            found["c"] = self.steps(c)
        return found | ({"saved": self.steps(kept)} if kept is not None else {})

    def run_backward(self, emulator: Emulator, given: dict[str, np.ndarray], **schedule: Any) -> dict[str, np.ndarray]:
        case = self.case
        T, B, H = case.T, case.B, case.H
        lstm = case.cell == "lstm"
        delta = self.out(*((B, T) if case.batch_first else (T, B)), self.deltas * H)
        dh0, dc0 = (None, None) if case.bare else (self.out(B, H), self.out(B, H) if lstm else None)
        tensors = [self.laid_out(given[name]) if name in given else None for name in ("saved", "y", "c")]
        tensors += [self.optional(self.h0), self.optional(self.c0) if lstm else None]
        tensors += [None if case.bare else self.laid_out(self.dy), store(self.dh_n, case.type)]
        tensors += [self.optional(self.dc_n) if lstm else None, store(self.w, case.type)]
        outputs = [v if v is None else Unwritten(v) for v in (delta, dh0, dc0)]
        self.launch(emulator, "grid_backward", *tensors, *outputs, **schedule)
        found = {"delta": self.steps(delta)}
        if dh0 is not None:
            found["dh0"] = widen(dh0)
        return found | ({"dc0": widen(dc0)} if dc0 is not None else {})

    def given(self) -> dict[str, np.ndarray]:
        return {name: widen(store(v, self.case.type)) for name, v in self.forward().items()}


def assert_close(found: dict[str, np.ndarray], right: dict[str, np.ndarray], case: Case) -> None:
    tolerance = 1e-5 if case.type == "float" else 4 * EPS[case.type] * np.sqrt(case.H)
    for name, v in found.items():
        largest = max(np.abs(right[name]).max(), 1e-30)
        assert np.abs(v - right[name]).max() <= tolerance * largest, name


def check(emulator: Emulator, case: Case, **schedule: Any) -> None:
    layer = Layer(case)
    assert_close(layer.run_forward(emulator, **schedule), layer.forward(), case)
    given = layer.given()
    assert_close(layer.run_backward(emulator, given, **schedule), layer.backward(given), case)


@pytest.mark.parametrize("reverse, batch_first", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_type_direction_and_layout(cell, type, reverse, batch_first):
    check(load("plain"), Case(cell, type, reverse=reverse, batch_first=batch_first))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("T, B, H, blocks", [(1, 1, 1, 1), (2, 17, 7, 2), (5, 1, 40, 5), (2, 33, 16, 3), (5, 3, 7, 5)])
def test_awkward_sizes(cell, T, B, H, blocks):
    for type in ("float", "half"):
        check(load("plain"), Case(cell, type, T, B, H, blocks=blocks))


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_whatever_may_be_null_and_a_sequence_without_steps(cell, type):
    check(load("plain"), Case(cell, type, T=2, B=2, H=16, blocks=2, bare=True))
    layer = Layer(replace(Case(cell, type, B=2, H=16, blocks=2), T=1))
    layer.case, layer.order = replace(layer.case, T=0), []
    states = layer.run_forward(load("plain"))
    assert (states["h_n"] == layer.h0).all() and ("c_n" not in states or (states["c_n"] == layer.c0).all())
    grads = layer.run_backward(load("plain"), {name: v[:0] for name, v in layer.forward().items()})
    assert (grads["dh0"] == layer.dh_n).all() and ("dc0" not in grads or (grads["dc0"] == layer.dc_n).all())


@pytest.mark.parametrize("shared", [6 << 10, 7 << 10, 48 << 10], ids=["streamed", "both", "shared"])
@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_weights_that_do_not_fit_in_registers(cell, type, shared):
    """Of the tested shape: one chunk of a warp in registers, and groups of two tiles."""
    emulator, case = load("plain"), Case(cell, type, T=2, B=1, H=100, blocks=25, shared=shared)
    seen = [Layer(case).plan(emulator, backward) for backward in (False, True)]
    for plan in seen:
        assert plan["fits"] and plan["slots"] > 0
        if shared == 48 << 10:
            assert plan["shared_slots"] == plan["slots"]
    check(emulator, case)
    check(emulator, replace(case, B=2, blocks=3, shared=60 << 10))  # several groups


@pytest.mark.parametrize("shape, H", [(NARROW, 40), (WIDE, 40), (SHIPPED, 72)])
@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_the_shapes_that_are_shipped(cell, type, shape, H):
    case = Case(cell, type, T=2, B=17, H=H, blocks=5, shared=99 << 10, shape=shape)
    if shape != SHIPPED:
        check(load("plain"), case)
        return
    for backward in (False, True):
        plan = Layer(case).plan(load("plain"), backward)
        wide = -(-H // 5) * (1 if backward else CELLS[cell][0]) > 8
        assert plan == Layer(replace(case, shape=WIDE if wide else NARROW)).plan(load("plain"), backward)


@pytest.mark.parametrize("schedule", [{}, {"order": "reverse"}, {"order": "random", "seed": 3, "preempt": 20}])
@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_nothing_to_report_under_any_schedule(cell, type, schedule):
    check(load("checked"), Case(cell, type, T=3, B=17, H=19, shared=9 << 10), **schedule)


def test_nothing_to_report_of_streamed_weights_and_shipped_shapes():
    schedule = {"order": "random", "seed": 5, "preempt": 50}
    check(load("checked"), Case("lstm", "half", T=3, B=2, H=100, blocks=25, shared=6 << 10), **schedule)
    check(load("checked"), Case("gru", "half", T=3, B=3, H=40, blocks=3, shape=WIDE), **schedule)
    check(load("checked"), Case("gru", "float", T=3, B=3, H=20, blocks=3, shape=NARROW), **schedule)


def test_sm_75_multiplies_in_its_own_way():
    for type in ("half", "bfloat16", "tf32"):
        check(load("checked", 750), Case("lstm", type, T=2, B=3, H=40))
        check(load("checked", 750), Case("gru", type, T=2, B=1, H=17))


def test_the_same_bits_under_any_schedule():
    layer = Layer(Case("gru", "float", T=4, B=5, H=40, blocks=5))
    first, *others = (
        layer.run_forward(load("plain"), order=order, seed=9) for order in ("forward", "reverse", "random")
    )
    for other in others:
        assert all((first[name] == other[name]).all() for name in first)


def test_a_plan_says_what_fits():
    plan = load("plain").module.plan
    # LSTM, H 768 in half precision on 132 multiprocessors: eight units fill four tiles, all weights in registers.
    forward = plan(SHIPPED, 132, 227 << 10, 16, 768, 4, 2, False)
    assert (forward["fits"], forward["blocks"], forward["units"], forward["slots"]) == (True, 96, 8, 0)
    # H 2048: 33 MB of weights, of which nothing is streamed.
    large = plan(SHIPPED, 132, 227 << 10, 16, 2048, 4, 2, False)
    assert large["fits"] and large["shared_slots"] == large["slots"] > 0
    assert large["shared_bytes"] <= 227 << 10
    streamed = plan(SHIPPED, 40, 64 << 10, 1, 1024, 4, 2, False)
    assert streamed["fits"] and streamed["slots"] > streamed["shared_slots"]
    assert streamed["workspace_bytes"] > 0 and streamed["shared_bytes"] <= 64 << 10
    assert not plan(SHIPPED, 4, 64 << 10, 128, 1024, 4, 2, False)["fits"]
    for H in (1, 7, 100, 1000):
        for blocks in (1, 3, 40):
            made = plan(WIDE, blocks, 1 << 24, 4, H, 3, 4, False)
            assert (
                made["blocks"] <= blocks and (made["blocks"] - 1) * made["units"] < H <= made["blocks"] * made["units"]
            )
