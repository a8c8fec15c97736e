"""Compiles every csrc/cuda/*.cu with nvcc for every architecture, warnings and spills as errors.

For the architectures of --inspect it also reads the machine code (this takes nvdisasm: `pip install
nvidia-cuda-nvdisasm`), and fails where a kernel is not what it is meant to be: what_is_wrong() of inspect_cuda.py. The
tables of docs/cuda-kernels.md are written by

    python build_tools/check_cuda.py --inspect --write
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import sass
from docs_tables import write_between_markers
from inspect_cuda import Inspected, inspect, instruction_table, occupancy_table, what_is_wrong
from nvcc import ARCHITECTURES, SOURCES, CompileError, compile_cubin


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", default=sorted(path.name for path in SOURCES.glob("*.cu")))
    parser.add_argument("--arch", nargs="+", type=int, default=ARCHITECTURES)
    parser.add_argument("--inspect", nargs="*", type=int, help="read the machine code, of all --arch if none is named")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/cuda-kernels.md")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    inspected = [] if options.inspect is None else options.inspect or options.arch
    if inspected:
        sass.disassembler()  # or a sentence about what is missing, before minutes of compiling
    jobs = [(SOURCES / name, architecture) for architecture in options.arch for name in options.sources]

    def run(job: tuple[Path, int]) -> tuple[list[Inspected], str, list[str]]:
        source, architecture = job
        cubin = Path(folder) / f"{source.stem}-{architecture}.cubin"
        try:
            takes = compile_cubin(source, architecture, cubin)
        except CompileError as error:
            return [], "failed", [str(error)]
        found = list(inspect(source, architecture, cubin, takes)) if architecture in inspected else []
        wrong = [f"{it.cell} {it.label}: {what}" for it in found for what in what_is_wrong(it)]
        most = max(kernel.registers for kernel in takes.values())
        return found, f"{len(takes)} kernels, at most {most} registers", wrong

    right, kernels = True, []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        results = pool.map(run, jobs)
        for (source, architecture), (found, said, wrong) in zip(jobs, results, strict=True):
            print(f"sm_{architecture} {source.name}: {said}", *wrong, sep="\n    ", flush=True)
            right = right and not wrong
            kernels += found
    if kernels:
        tables = {"occupancy": occupancy_table(kernels), "instructions": instruction_table(kernels)}
        if options.write:
            write_between_markers(tables)
        else:
            print(*tables.values(), sep="\n")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
