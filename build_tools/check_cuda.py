"""Compiles every csrc/cuda/*.cu with nvcc for every architecture, warnings and spills as errors, and tables what the
kernels take.

    python build_tools/check_cuda.py [--arch 75 90] [--jobs 2] [block_half.cu ...]
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).parents[1] / "csrc" / "cuda"
ARCHITECTURES = [75, 80, 86, 89, 90, 100, 120]
FLAGS = ["-std=c++17", "-Werror", "all-warnings", "-Xptxas", "-v,-warn-spills,-warn-lmem-usage,-Werror", "-cubin"]


def compile_one(source: Path, architecture: int, folder: str) -> tuple[bool, str]:
    to = Path(folder) / f"{source.stem}-{architecture}.cubin"
    command = ["nvcc", *FLAGS, f"-arch=sm_{architecture}", str(source), "-o", str(to)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        said = [line for line in done.stdout.splitlines() if not line.startswith(("ptxas info", "    "))]
        return False, "\n".join([f"sm_{architecture} {source.name}: failed", *said])
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", done.stdout)]
    return True, f"sm_{architecture} {source.name}: {len(registers)} kernels, at most {max(registers)} registers"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", default=sorted(path.name for path in SOURCES.glob("*.cu")))
    parser.add_argument("--arch", nargs="+", type=int, default=ARCHITECTURES)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    jobs = [(SOURCES / name, architecture) for architecture in options.arch for name in options.sources]
    right = True
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        for passed, said in pool.map(lambda job: compile_one(job[0], job[1], folder), jobs):
            right = right and passed
            print(said, flush=True)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
