"""What a step of the CUDA kernels takes at least on a device, from the bytes and operations of the plan that
csrc/cuda/select.h makes (asked by plans.cpp, so that it is never another) and from what the device can do at most.

    python build_tools/cuda_limits.py [--write]

--write puts the tables into docs/cuda-kernels.md, which says where the figures of devices are from.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from docs_tables import markdown, write_between_markers
from nvcc import SOURCES
from occupancy import MULTIPROCESSORS
from toolchain import compiler

TYPES = {"float64": 8, "float32": 4, "tf32": 4, "float16": 2, "bfloat16": 2}  # bytes, in the order of ValueType
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
# Values of a unit, row and step that go between the kernel and the caller's tensors.
FORWARD_VALUES = {"LSTM": 4 + 1 + 1 + 4, "GRU": 3 + 1 + 4, "RNN": 1 + 1}  # x; y, c and what backward needs
BACKWARD_VALUES = {"LSTM": 4 + 1 + 1 + 4, "GRU": 4 + 1 + 1 + 4, "RNN": 1 + 1 + 1}  # saved, c or y, dy; deltas
ALGORITHMS = ["step", "block", "grid"]
KINDS = ["Narrow", "Wide", "Broad"]  # of GridKind


@dataclass(frozen=True)
class Device:
    """Rates of a multiprocessor a clock; of all together: L2 bytes a clock, memory in GB/s."""

    name: str
    architecture: int
    multiprocessors: int
    ghz: float
    half_products: float  # multiply-adds of mma.sync
    products: float
    memory: float
    l2_wait: float  # clocks of a load that hits L2
    l2: float = 5120
    l2_port: float = 64
    shared: float = 128
    launch: float = 2  # microseconds, when one follows the other

    def us(self, clocks: float) -> float:
        return clocks / self.ghz / 1e3

    def rate(self, type: str, tensor_cores: bool) -> float:
        if not tensor_cores:
            return self.products
        return self.half_products / (2 if type == "tf32" else 1)


DEVICES = [
    Device("A100", 80, 108, 1.41, half_products=1024, products=64, memory=2039, l2_wait=200),
    Device("H100", 90, 132, 1.83, half_products=0.62 * 2048, products=128, memory=3352, l2_wait=260),
]


@dataclass(frozen=True)
class Problem:
    cell: str
    type: str
    B: int
    H: int
    backward: bool
    T: int = 1024

    def __str__(self) -> str:
        return f"{self.cell} {self.type} {self.B} x {self.H}{', backward' if self.backward else ''}"


@dataclass(frozen=True)
class Step:
    """What a step does, and the microseconds that this takes at least."""

    device: Device
    multiplied: float  # multiply-adds of one multiprocessor
    rate: float
    shared: float  # bytes, of one multiprocessor
    l2: float  # bytes, of one multiprocessor
    busy: int  # multiprocessors
    memory: float  # bytes, of all
    waits: int = 0  # one after the other, each of `wait` microseconds: loads from L2, or launches
    wait: float = 0
    exchange: float = 0  # microseconds before anything else can start: what is read has to arrive in L2

    @property
    def multiply_us(self) -> float:
        return self.device.us(self.multiplied / self.rate)

    @property
    def shared_us(self) -> float:
        return self.device.us(self.shared / self.device.shared)

    @property
    def l2_us(self) -> float:
        return self.device.us(max(self.l2 / self.device.l2_port, self.l2 * self.busy / self.device.l2))

    @property
    def memory_us(self) -> float:
        return self.memory / self.device.memory / 1e3

    @property
    def limit(self) -> float:
        """Everything overlaps but the exchange."""
        work = max(self.multiply_us, self.shared_us, self.l2_us, self.waits * self.wait)
        return max(self.exchange + work, self.memory_us)


@dataclass(frozen=True)
class Schedule:
    """Numbers of the kernels that no plan has, read from their sources."""

    warps: int
    tiles: int
    kept: int
    rows: int
    ahead: int  # chunks whose rows are on their way together
    ahead_of_slots: int

    @staticmethod
    def of(kind: int, tensor_cores: bool, architecture: int) -> Schedule:
        plan, product = ((SOURCES / name).read_text("utf-8") for name in ("grid_plan.h", "grid_product.cuh"))
        warps, tiles, kept = _numbers(rf"using Grid{KINDS[kind]} = GridShape<(\d+), (\d+), (\d+)>", plan)
        (rows,) = _numbers(r"struct MmaProduct {.*?kRows = (\d+)" if tensor_cores else r"kFmaRows = (\d+)", product)
        branch = r"FUSEDRNN_ARCH == 900\n" if architecture == 90 else r"#else\n"
        mma, of_slots, fma = _numbers(
            branch + r"constexpr int kMmaAhead = (\d+), kMmaAheadOfSlots = (\d+), kFmaAhead = (\d+);", product
        )
        ahead, ahead_of_slots = (mma, of_slots) if tensor_cores else (fma, fma)
        return Schedule(warps, tiles, kept, rows, ahead, ahead_of_slots)

    def waits(self, groups: int, chunks: int) -> int:
        """Rounds of loads from L2 in which a warp reads its rows once for each group of tiles."""
        own = -(-chunks // self.warps)
        kept = min(own, self.kept)
        first = -(-kept // min(self.ahead, self.kept)) + -(-(own - kept) // self.ahead_of_slots)
        return first + (groups - 1) * -(-own // self.ahead_of_slots)


def _numbers(pattern: str, text: str) -> list[int]:
    found = re.search(pattern, text, re.DOTALL)
    if not found:
        raise SystemExit(f"csrc/cuda has no more what matches {pattern!r}: cuda_limits.py reads it from there.")
    return [int(number) for number in found.groups()]


def plans(problems: list[Problem], device: Device) -> list[dict[str, int]]:
    shared = MULTIPROCESSORS[device.architecture].shared_of_block
    lines = [
        f"{p.backward:d} {GATES[p.cell]} {list(TYPES).index(p.type)} {p.T} {p.B} {p.H} "
        f"{device.multiprocessors} {shared} {device.architecture}\n"
        for p in problems
    ]
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / "plans")
        source = str(Path(__file__).with_name("plans.cpp"))
        subprocess.run([*compiler(), "-std=c++17", "-O1", source, "-o", program], check=True)
        done = subprocess.run([program], input="".join(lines), capture_output=True, text=True, check=True)
    names, *rows = (line.split() for line in done.stdout.splitlines())
    return [dict(zip(names, map(int, row), strict=True)) for row in rows]


def grid_step(p: Problem, plan: dict[str, int], device: Device) -> Step:
    schedule, rows = Schedule.of(plan["kind"], bool(plan["tensor_cores"]), device.architecture), plan["rows"]
    passes = -(-rows // 16)
    takes = -(-min(rows, 16) // schedule.rows)  # times that a pass goes over its weights
    columns, K = plan["groups"] * schedule.tiles * 8, plan["chunks"] * 64 // TYPES[p.type]
    slot = schedule.warps * schedule.tiles * 512
    sums = 2 * 4 * rows * schedule.warps * columns  # written and read
    exchanged = plan["groups"] * rows * plan["chunks"] * 64
    return Step(
        device,
        multiplied=passes * takes * schedule.rows * columns * K,
        rate=device.rate(p.type, bool(plan["tensor_cores"])),
        shared=passes * takes * plan["shared_slots"] * slot + sums,
        l2=exchanged + passes * takes * (plan["slots"] - plan["shared_slots"]) * slot,
        busy=plan["teams"] * plan["blocks"],
        memory=memory_bytes(p),
        waits=passes * takes * schedule.waits(plan["groups"], plan["chunks"]),
        wait=device.us(device.l2_wait),
        exchange=device.us(device.l2_wait),
    )


def block_step(p: Problem, plan: dict[str, int], device: Device) -> Step:
    rows = plan["rows_of_thread"] * plan["groups_of_threads"]
    blocks = -(-p.B // rows)
    waves = -(-blocks // device.multiprocessors)
    columns = plan["threads"] * (1 if p.backward else GATES[p.cell])
    # A warp reads 16 bytes for all its threads in the time of 128.
    operand = rows * plan["threads"] // 32 * -(-plan["depth"] // 4) * 128
    return Step(
        device,
        multiplied=waves * rows * columns * plan["depth"],
        rate=device.products,
        shared=waves * (plan["groups_of_threads"] * plan["weights"] + operand),
        l2=0,
        busy=min(blocks, device.multiprocessors),
        memory=memory_bytes(p),
    )


def step_step(p: Problem, plan: dict[str, int], device: Device) -> Step:
    """w_hh and what it makes in float32 pass L2; the pointwise kernel waits for the product."""
    weights = GATES[p.cell] * p.H * p.H
    made = p.B * p.H * (1 if p.backward else GATES[p.cell])
    return Step(
        device,
        multiplied=p.B * weights / device.multiprocessors,
        rate=device.rate(p.type, bool(plan["tensor_cores"])),
        shared=0,
        l2=(weights * TYPES[p.type] + 8 * made) / device.multiprocessors,
        busy=device.multiprocessors,
        memory=memory_bytes(p),
        waits=2,
        wait=device.launch,
    )


def memory_bytes(p: Problem) -> float:
    values = (BACKWARD_VALUES if p.backward else FORWARD_VALUES)[p.cell]
    return values * p.B * p.H * TYPES[p.type]


def where_weights_are(plan: dict[str, int], device: Device) -> str:
    """Per cent of the tiles of w_hh in registers, in shared memory, in L2."""
    schedule = Schedule.of(plan["kind"], bool(plan["tensor_cores"]), device.architecture)
    all = plan["groups"] * -(-plan["chunks"] // schedule.warps)
    parts = [all - plan["slots"], plan["shared_slots"], plan["slots"] - plan["shared_slots"]]
    return " / ".join(f"{100 * part / all:.0f}" for part in parts)


# cuDNN: 2.0 ms forward for T 1024, 5.2 ms with backward.
CUDNN = {
    ("H100", Problem("LSTM", "float16", 16, 768, backward=False)): 1.96,
    ("H100", Problem("LSTM", "float16", 16, 768, backward=True)): 3.1,
}
SHAPES = [
    ("LSTM", "float16", 16, 768),
    ("LSTM", "bfloat16", 64, 1024),
    ("LSTM", "float16", 16, 2048),
    ("GRU", "bfloat16", 16, 1024),
    ("GRU", "float32", 64, 512),
    ("GRU", "tf32", 64, 512),
    ("LSTM", "float32", 16, 256),
    ("LSTM", "float32", 64, 64),
]


def amount(n: float) -> str:
    return f"{n / 1e6:.1f} M" if n >= 1e6 else f"{n / 1e3:.0f} k"


def table(device: Device) -> str:
    rows = []
    problems = [Problem(*shape, backward=backward) for shape in SHAPES for backward in (False, True)]
    for p, plan in zip(problems, plans(problems, device), strict=True):
        limits = {"step": f"{step_step(p, plan, device).limit:.2f}", "block": "", "grid": ""}
        if plan["rows_of_thread"]:
            limits["block"] = f"{block_step(p, plan, device).limit:.2f}"
        parts = [""] * 7
        if plan["fits"]:
            step = grid_step(p, plan, device)
            limits["grid"] = f"{step.limit:.2f}"
            parts = [
                where_weights_are(plan, device),
                f"{plan['teams']} x {plan['blocks']} of {amount(plan['shared_bytes'])}",
                f"{step.multiply_us:.2f} ({amount(step.multiplied * step.busy)})",
                f"{step.shared_us:.2f} ({amount(step.shared)})",
                f"{step.l2_us:.2f} ({amount(step.l2 * step.busy)})",
                f"{step.memory_us:.2f} ({amount(step.memory)})",
                f"{step.waits * step.wait:.2f} ({step.waits})",
            ]
        chosen = ALGORITHMS[plan["chosen"]]
        limits[chosen] = f"**{limits[chosen]}**"
        cudnn = CUDNN.get((device.name, p))
        rows.append([str(p), *parts, *(limits[name] for name in ("grid", "block", "step")), str(cudnn or "")])
    header = [
        device.name,
        "w_hh",
        "blocks",
        "multiply",
        "shared",
        "L2",
        "memory",
        "waits",
        "grid",
        "block",
        "step",
        "cuDNN",
    ]
    return markdown(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/cuda-kernels.md")
    options = parser.parse_args()
    tables = {f"limits of {device.name}": table(device) for device in DEVICES}
    if options.write:
        write_between_markers(tables)
    else:
        print(*tables.values(), sep="\n")


if __name__ == "__main__":
    main()
