"""fusedrnn against nn.LSTM, nn.GRU and nn.RNN: forward and training, in one process, alternating.

A run of ours and a run of theirs take turns until the time is up, and the medians are compared, so that what else the
machine does falls on both. "inference" is the module call in inference_mode; "training" is the forward pass and the
gradients of the input and of every parameter. Ratios above 1 mean that fusedrnn is faster.

    python benchmarks/run.py                       # every cell and shape, all threads
    python benchmarks/run.py --cell gru --shape 64,16,64,64 --threads 1 --seconds 3
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

import fusedrnn
from fusedrnn.info import info

# (B, T, I, H): small and large language models, a time series, a wide batch, a single stream.
SHAPES = [
    (64, 16, 64, 64),
    (64, 8, 42, 256),
    (32, 128, 128, 128),
    (20, 35, 650, 650),
    (64, 70, 400, 1150),
    (128, 64, 512, 512),
    (1, 100, 256, 256),
]
CELLS = {
    "lstm": (nn.LSTM, fusedrnn.LSTM, {}),
    "gru": (nn.GRU, fusedrnn.GRU, {}),
    "rnn": (nn.RNN, fusedrnn.RNN, {"nonlinearity": "relu"}),
}
GATES = {"lstm": 4, "gru": 3, "rnn": 1}


@dataclass
class Result:
    cell: str
    shape: tuple[int, int, int, int]
    task: str
    nn_ms: float
    fused_ms: float
    spread: float  # half the interquartile range of ours over its median: above 0.2 the ratio says little
    gflops: float  # of ours: products alone, 3 times the forward pass for training

    @property
    def ratio(self) -> float:
        return self.nn_ms / self.fused_ms


def alternate(functions: list[Callable[[], object]], seconds: float, least: int = 7) -> list[list[float]]:
    """Times of each function in ms, called in turn for ``seconds``, after two calls that are not counted."""
    for f in functions:
        f(), f()
    times: list[list[float]] = [[] for _ in functions]
    end = time.perf_counter() + seconds
    while len(times[0]) < least or (time.perf_counter() < end and len(times[0]) < 2000):
        for f, t in zip(functions, times, strict=True):
            start = time.perf_counter()
            f()
            t.append((time.perf_counter() - start) * 1e3)
    return times


def tasks(module: nn.Module, shape: tuple[int, int, int, int]) -> dict[str, Callable[[], object]]:
    B, T, I, H = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(T, B, I, generator=generator)
    x_grad, dy = x.clone().requires_grad_(), torch.randn(T, B, H, generator=generator)
    parameters = list(module.parameters())

    def inference() -> object:
        with torch.inference_mode():
            return module(x)

    def training() -> object:
        return torch.autograd.grad(module(x_grad)[0], [x_grad, *parameters], dy)

    return {"inference": inference, "training": training}


def measure(cell: str, shape: tuple[int, int, int, int], seconds: float) -> list[Result]:
    B, T, I, H = shape
    theirs, ours, options = CELLS[cell]
    torch.manual_seed(0)
    reference = theirs(I, H, **options)
    module = ours(I, H, **options)
    module.load_state_dict(reference.state_dict())
    flops = 2 * B * T * GATES[cell] * H * (I + H)
    results = []
    for task, factor in (("inference", 1), ("training", 3)):
        nn_times, times = alternate([tasks(reference, shape)[task], tasks(module, shape)[task]], seconds)
        median = statistics.median(times)
        quartiles = statistics.quantiles(times, n=4)
        results.append(
            Result(
                cell,
                shape,
                task,
                statistics.median(nn_times),
                median,
                (quartiles[2] - quartiles[0]) / 2 / median,
                factor * flops / median / 1e6,
            )
        )
    return results


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(math.log(v) for v in values) / len(values))


def summary(results: list[Result]) -> list[str]:
    lines = ["", f"{'cell':<6}{'task':<11}{'geometric mean':>15}{'worst shape':>13}"]
    for cell in dict.fromkeys(r.cell for r in results):
        for task in ("inference", "training"):
            ratios = [r.ratio for r in results if r.cell == cell and r.task == task]
            lines.append(f"{cell:<6}{task:<11}{geometric_mean(ratios):>15.2f}{min(ratios):>13.2f}")
    return lines


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def parse_shape(text: str) -> tuple[int, int, int, int]:
    sizes = tuple(int(n) for n in text.split(","))
    if len(sizes) != 4 or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"expected B,T,I,H of at least 1, got {text!r}")
    return sizes[0], sizes[1], sizes[2], sizes[3]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", choices=list(CELLS), action="append", help="one cell; may be given again")
    parser.add_argument("--shape", type=parse_shape, action="append", metavar="B,T,I,H", help="one shape; likewise")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=1.5, help="per cell, shape and task (default: 1.5)")
    parser.add_argument("--json", type=Path, default=Path("benchmark.json"), help="where the results go")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{info()}\nratio: time of nn.* / time of fusedrnn, medians\n")
    print(f"{'cell':<6}{'B,T,I,H':<18}{'task':<11}{'nn ms':>10}{'fused ms':>10}{'ratio':>8}{'GF/s':>8}{'spread':>8}")
    results: list[Result] = []
    for cell in args.cell or CELLS:
        for shape in args.shape or SHAPES:
            for r in measure(cell, shape, args.seconds):
                results.append(r)
                print(
                    f"{r.cell:<6}{','.join(map(str, r.shape)):<18}{r.task:<11}{r.nn_ms:>10.3f}{r.fused_ms:>10.3f}"
                    f"{r.ratio:>8.2f}{r.gflops:>8.0f}{r.spread:>8.2f}",
                    flush=True,
                )
    print("\n".join(summary(results)))
    machine = {**asdict(info()), "processor": processor(), "threads": args.threads}
    rows = [{**asdict(r), "ratio": r.ratio} for r in results]
    args.json.write_text(json.dumps({"machine": machine, "results": rows}, indent=1) + "\n", encoding="utf-8")
    print(f"\nwritten to {args.json}")


if __name__ == "__main__":
    main()
