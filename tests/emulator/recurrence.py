"""Whole sequences: a reference in float64, and a launch of the kernels to compare with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from emulator.toolchain import Emulator, Unwritten

CELLS = ["lstm", "gru", "rnn_tanh", "rnn_relu"]
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
ZEROED, DETACHED, IDLE = 1, 2, 4
SAVED = {"lstm": 4, "gru": 4, "rnn_tanh": 0, "rnn_relu": 0}
DELTAS = {"lstm": 4, "gru": 4, "rnn_tanh": 1, "rnn_relu": 1}


def to_bfloat16(v: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(v, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bfloat16(v: np.ndarray) -> np.ndarray:
    return (v.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


class Type(NamedTuple):
    """How numpy holds a type, and how far results may be off, relative to the largest value, at this H."""

    stored: Any
    epsilon: float

    def store(self, v: np.ndarray) -> np.ndarray:
        return to_bfloat16(v) if self.stored is np.uint16 else np.ascontiguousarray(v, self.stored)

    def load(self, v: np.ndarray) -> np.ndarray:
        return from_bfloat16(v) if self.stored is np.uint16 else v.astype(np.float64)

    def tolerance(self, H: int) -> float:
        """What is rounded before it is multiplied is off by a random walk."""
        return 4 * self.epsilon * max(H, 1) ** 0.5 if self.epsilon > 1e-4 else self.epsilon


TYPES = {  # as ValueType
    "float64": Type(np.float64, 1e-12),
    "float32": Type(np.float32, 1e-5),
    "tf32": Type(np.float32, 2.0**-10),
    "float16": Type(np.float16, 2.0**-10),
    "bfloat16": Type(np.uint16, 2.0**-7),
}


@dataclass
class Case:
    cell: str
    type_name: str
    T: int
    B: int
    H: int
    reverse: bool = False
    batch_first: bool = False
    absent: tuple[str, ...] = ()  # tensors that are null
    masks: str = ""  # "padded" or "packed": rows that end early, states that are zeroed and steps that are detached
    data: dict[str, np.ndarray] = field(init=False)
    flags: np.ndarray = field(init=False)  # [T, B], as kernels.h has them

    def __post_init__(self) -> None:
        """Values that the type holds, [T, B, .]."""
        T, B, H, G = self.T, self.B, self.H, GATES[self.cell]
        random, kind = np.random.default_rng(T * 100 + B * 10 + H), TYPES[self.type_name]
        shapes = {"x": (T, B, G * H), "h0": (B, H), "w_hh": (G * H, H), "b_ih": (G * H,), "b_hh": (G * H,)}
        shapes |= {"dy": (T, B, H), "dh_n": (B, H)}
        if self.cell == "lstm":
            shapes |= {"c0": (B, H), "dc_n": (B, H)}
        scales = {"w_hh": H**-0.5}
        self.data = {
            name: kind.load(kind.store(random.uniform(-1, 1, shape) * scales.get(name, 1)))
            for name, shape in shapes.items()
            if name not in self.absent
        }
        if self.masks and self.cell == "lstm" and "dc" not in self.absent:
            self.data["dc"] = kind.load(kind.store(random.uniform(-1, 1, (T, B, H))))
        lengths = random.integers(0, T + 1, B) if self.masks else np.full(B, T)
        if self.masks == "packed":
            lengths = np.sort(np.maximum(lengths, 1))[::-1]
            lengths[0] = T
        drawn = random.integers(0, 4, (T, B)) * (random.random((T, B)) < 0.5) if self.masks else np.zeros((T, B))
        self.flags = np.where(np.arange(T)[:, None] < lengths, drawn, IDLE).astype(np.uint16)

    def stored_rows(self, v: np.ndarray) -> np.ndarray:
        """[T, B, .] as the kernels have it."""
        return v[self.flags != IDLE] if self.masks == "packed" else self.time_first(v)

    def loaded_rows(self, v: np.ndarray) -> np.ndarray:
        """And back: rows that a packed sequence has not are zeros."""
        if self.masks != "packed":
            return self.time_first(v)
        all_rows = np.zeros((self.T, self.B, v.shape[-1]))
        all_rows[self.flags != IDLE] = v
        return all_rows

    def time_first(self, v: np.ndarray) -> np.ndarray:
        """To the layout of the case, or back."""
        return np.ascontiguousarray(v.swapaxes(0, 1)) if self.batch_first else v


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def forward_step(cell: str, x, r, h, c):
    """Of rows, with [B, G, H] on either side. Returns the new states and what is saved."""
    if cell == "lstm":
        i, f, o = (sigmoid(x[:, g] + r[:, g]) for g in (0, 1, 3))
        g = np.tanh(x[:, 2] + r[:, 2])
        c = f * c + i * g
        return o * np.tanh(c), c, [i, f, g, o]
    if cell == "gru":
        reset, z = sigmoid(x[:, 0] + r[:, 0]), sigmoid(x[:, 1] + r[:, 1])
        n = np.tanh(x[:, 2] + reset * r[:, 2])
        return n + z * (h - n), c, [reset, z, n, r[:, 2]]
    a = x[:, 0] + r[:, 0]
    return (np.tanh(a) if cell == "rnn_tanh" else np.maximum(a, 0)), c, []


def forward(case: Case) -> dict[str, np.ndarray]:
    """y, c, saved of all steps and the final states."""
    d, zero, G = case.data, np.zeros((case.B, case.H)), GATES[case.cell]
    h, c, zeros = d.get("h0", zero), d.get("c0", zero), np.zeros(G * case.H)
    out: dict[int, tuple] = {}
    split = lambda v: v.reshape(case.B, G, case.H)  # noqa: E731
    for t in range(case.T)[:: -1 if case.reverse else 1]:
        zeroed, idle = ((case.flags[t] & bit)[:, None] > 0 for bit in (ZEROED, IDLE))
        before = np.where(zeroed, 0, h), np.where(zeroed, 0, c)
        x, r = d["x"][t] + d.get("b_ih", zeros), before[0] @ d["w_hh"].T + d.get("b_hh", zeros)
        *after, saved = forward_step(case.cell, split(x), split(r), *before)
        out[t] = tuple(np.where(idle, 0, v) for v in (*after, np.concatenate([*saved, zero[:, :0]], 1)))
        h, c = np.where(idle, h, after[0]), np.where(idle, c, after[1])
    widths = {"y": case.H, "c": case.H, "saved": SAVED[case.cell] * case.H}
    kept = {
        name: np.stack([out[t][i] for t in range(case.T)]) if case.T else np.zeros((0, case.B, width))
        for i, (name, width) in enumerate(widths.items())
    }
    return kept | {"h_n": h, "c_n": c}


def backward_step(cell: str, saved, h, h_prev, c, c_prev, dh, dc):
    """The deltas, dh around w_hh, and dc of the step before."""
    if cell == "lstm":
        i, f, g, o = saved
        dc = dc + dh * o * (1 - np.tanh(c) ** 2)
        deltas = [dc * g * i * (1 - i), dc * c_prev * f * (1 - f), dc * i * (1 - g * g)]
        return [*deltas, dh * np.tanh(c) * o * (1 - o)], 0, dc * f
    if cell == "gru":
        r, z, n, m = saved
        dn = dh * (1 - z) * (1 - n * n)
        return [dn, dn * m * r * (1 - r), dh * (h_prev - n) * z * (1 - z), dn * r], dh * z, dc
    return [dh * (1 - h * h) if cell == "rnn_tanh" else dh * (h > 0)], 0, dc


def backward(case: Case, kept: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The deltas of all steps and the gradients of the initial states, by the values that forward kept."""
    d, zero, G, H = case.data, np.zeros((case.B, case.H)), GATES[case.cell], case.H
    dh, dc, y, c = d.get("dh_n", zero), d.get("dc_n", zero), kept["y"], kept["c"]
    steps = list(range(case.T)[:: -1 if case.reverse else 1])
    deltas = np.zeros((case.T, case.B, DELTAS[case.cell] * H))
    first = H if case.cell == "gru" else 0
    for k, t in reversed(list(enumerate(steps))):
        flags = case.flags[t][:, None]
        h_prev, c_prev = d.get("h0", zero), d.get("c0", zero)
        if k:
            ran = case.flags[steps[k - 1]][:, None] != IDLE
            h_prev, c_prev = np.where(ran, y[steps[k - 1]], h_prev), np.where(ran, c[steps[k - 1]], c_prev)
        h_prev, c_prev = (np.where(flags & ZEROED, 0, v) for v in (h_prev, c_prev))
        saved = np.split(kept["saved"][t], SAVED[case.cell], 1) if SAVED[case.cell] else []
        grads = dh + (d["dy"][t] if "dy" in d else 0), dc + (d["dc"][t] if "dc" in d else 0)
        slots, direct, around = backward_step(case.cell, saved, y[t], h_prev, c[t], c_prev, *grads)
        deltas[t] = np.where(flags & IDLE, 0, np.concatenate(slots, 1))
        through = direct + deltas[t][:, first : first + G * H] @ d["w_hh"]
        dh, dc = (
            np.where(flags & IDLE, old, np.where(flags & (ZEROED | DETACHED), 0, new))
            for old, new in ((dh, through), (dc, around))
        )
    return {"delta": deltas, "dh0": dh, "dc0": dc}


class Kernel(NamedTuple):
    """As recurrence.h numbers them."""

    kind: int
    p: int = 0
    q: int = 0
    r: int = 0
    s: int = 0


STEP = Kernel(0)
TESTED, NARROW, WIDE, BROAD = range(4)  # shapes of grid


def block(rows_per_thread: int, groups: int) -> Kernel:
    return Kernel(1, rows_per_thread, groups)


def grid(blocks: int, shape: int = TESTED, shared: int = 48 << 10, teams: int = 1) -> Kernel:
    """With this many blocks of a team, bytes of shared memory of one, and teams, at most."""
    return Kernel(2, shape, blocks, shared, teams)


def plan(emulator: Emulator, case: Case, kernel: Kernel, backward: bool) -> dict[str, Any]:
    size = np.dtype(TYPES[case.type_name].stored).itemsize
    return emulator.module.grid_plan(*kernel[1:], case.B, case.H, GATES[case.cell], size, backward)


def memory_of(emulator: Emulator, case: Case, kernel: Kernel, backward: bool) -> list[np.ndarray | None]:
    """The product and what is carried between single steps, and the workspace of grid."""
    B, H, memory = case.B, case.H, [None] * (4 if backward else 5)
    if kernel == STEP:
        compute = np.float64 if case.type_name == "float64" else np.float32
        memory[0] = np.zeros((B, (1 if backward else GATES[case.cell]) * H), compute)
        memory[1] = np.zeros((B, H), compute) if case.cell == "gru" or case.masks else None
        memory[2] = np.zeros((B, H), compute) if case.cell == "lstm" else None
        if case.masks and not backward:
            memory[4] = np.zeros((B, H), TYPES[case.type_name].stored)
    elif kernel.kind == grid(1).kind:
        made = plan(emulator, case, kernel, backward)
        assert made["fits"]
        memory[3] = np.zeros(made["workspace_bytes"], np.uint8)
    return memory


def launch(
    emulator: Emulator, name: str, case: Case, kernel: Kernel, given, wanted, **schedule
) -> dict[str, np.ndarray]:
    """given and wanted: values or shapes by name in the order of arguments; None is null."""
    kind = TYPES[case.type_name]
    inputs = [None if v is None else kind.store(case.stored_rows(v) if v.ndim == 3 else v) for v in given.values()]
    runs = case.flags != IDLE
    inputs.append(case.flags.copy() if case.masks else None)
    inputs.append(np.concatenate([[0], np.cumsum(runs.sum(1))]) if case.masks == "packed" else None)
    for v in inputs:
        if v is not None:
            v.flags.writeable = False
    outputs = {}
    for key, size in wanted.items():
        if size is not None and len(size) == 3:
            size = case.stored_rows(np.empty(size)).shape
        outputs[key] = None if size is None else np.zeros(size, kind.stored)
    memory = memory_of(emulator, case, kernel, name == "run_backward")
    numbers = [CELLS.index(case.cell), [*TYPES].index(case.type_name), *kernel, case.T, case.B, case.H]
    written = [None if v is None else Unwritten(v) for v in (*outputs.values(), *memory)]
    emulator.launch(name, *numbers, case.reverse, case.batch_first, *inputs, *written, **schedule)
    loaded = {key: kind.load(v) for key, v in outputs.items() if v is not None}
    return {key: v if len(wanted[key]) == 2 else case.loaded_rows(v) for key, v in loaded.items()}


def run_forward(emulator, case: Case, kernel: Kernel, keep: bool = True, **schedule) -> dict[str, np.ndarray]:
    T, B, H, lstm = case.T, case.B, case.H, case.cell == "lstm"
    saved = SAVED[case.cell]
    wanted = {
        "y": (T, B, H),
        "c": (T, B, H) if lstm and keep else None,
        "saved": (T, B, saved * H) if saved and keep else None,
        "h_n": (B, H),
        "c_n": (B, H) if lstm else None,
    }
    given = {name: case.data.get(name) for name in ("x", "h0", "c0", "w_hh", "b_ih", "b_hh")}
    return launch(emulator, "run_forward", case, kernel, given, wanted, **schedule)


def run_backward(emulator, case: Case, kept, kernel: Kernel, **schedule) -> dict[str, np.ndarray]:
    T, B, H, lstm = case.T, case.B, case.H, case.cell == "lstm"
    reads = {"lstm": ("saved", "c"), "gru": ("saved", "y"), "rnn_tanh": ("y",), "rnn_relu": ("y",)}[case.cell]
    given = {name: kept[name] if name in reads else None for name in ("saved", "y", "c")}
    given |= {name: case.data.get(name) for name in ("h0", "c0", "dy", "dh_n", "dc_n", "dc", "w_hh")}
    wanted = {"delta": (T, B, DELTAS[case.cell] * H), "dh0": (B, H), "dc0": (B, H) if lstm else None}
    wanted = {key: None if key in case.absent else v for key, v in wanted.items()}
    return launch(emulator, "run_backward", case, kernel, given, wanted, **schedule)


def rounded(case: Case, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    kind = TYPES[case.type_name]
    return {name: kind.load(kind.store(v)) for name, v in values.items()}


def check(case: Case, kernel: Kernel, emulator: Emulator, keep: bool = True, **schedule) -> None:
    """Forward and backward against the reference. Backward gets what the reference kept, as the type holds it."""
    right = forward(case)
    results = [(run_forward(emulator, case, kernel, keep, **schedule), right)]
    kept = rounded(case, right)
    results.append((run_backward(emulator, case, kept, kernel, **schedule), backward(case, kept)))
    for actual, expected in results:
        for name, v in actual.items():
            limit = TYPES[case.type_name].tolerance(case.H) * np.abs(expected[name]).max(initial=0)
            np.testing.assert_allclose(v, expected[name], rtol=0, atol=limit, err_msg=f"{name} of {case.cell}")
