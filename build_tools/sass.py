"""Machine code as nvdisasm prints it: which instructions a kernel has, and which of its loops multiply."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

_SECTION = re.compile(r"^//-+ \.(text|nv\.info)\.(\S+) +-+$")
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_a-z.]*)(.*)$")
_LABEL = re.compile(r"^(\.L_x_\d+):")
_TARGET = re.compile(r"`\((\.L_x_\d+)\)")
_WORD = re.compile(r"\.word\s+(0x[0-9a-f]+)")


@dataclass
class Kernel:
    threads: int = 0  # of a block, at most; 0: the kernel does not say
    code: list[tuple[str, str]] = field(default_factory=list)  # opcode, operands
    labels: dict[str, int] = field(default_factory=dict)  # of what instruction

    def count(self, *opcodes: str, width: int = 0) -> int:
        """Instructions of these opcodes, of a width in bits if one is given."""
        return sum(_is(opcode, opcodes, width) for opcode, _ in self.code)

    def product_loops(self) -> list[list[str]]:
        """The opcodes of each loop that multiplies the matrix and has none of its kind inside. In it, others may wait
        for what is multiplied. Gate math has multiply-adds too, but what it makes is stored."""
        product = "HMMA" if self.count("HMMA") else "FFMA"
        loops = set()
        for at, (opcode, operands) in enumerate(self.code):
            target = _TARGET.search(operands)
            if opcode.startswith("BRA") and target and (start := self.labels.get(target[1], at)) < at:
                loops.add((start, at))
        multiply = {(start, end): [opcode for opcode, _ in self.code[start : end + 1]] for start, end in sorted(loops)}
        multiply = {at: loop for at, loop in multiply.items() if any(_is(opcode, [product]) for opcode in loop)}
        innermost = [
            loop
            for (start, end), loop in multiply.items()
            if not any(start <= s and e <= end and (s, e) != (start, end) for s, e in multiply)
        ]
        return [
            loop
            for loop in innermost
            if any(_is(opcode, LOADS) for opcode in loop)
            and not any(_is(opcode, ["ST", "STG", "MUFU"]) for opcode in loop)
        ]


LOADS = ["LD", "LDG", "LDS"]
LOCAL = ["LDL", "STL"]


def _is(opcode: str, kinds: Collection[str], width: int = 0) -> bool:
    kind, *modifiers = opcode.split(".")
    return kind in kinds and (not width or str(width) in modifiers)


def product_loads(kernel: Kernel) -> Counter[str]:
    """The loads of its product loops."""
    return Counter(opcode for loop in kernel.product_loops() for opcode in loop if _is(opcode, LOADS))


def parse(text: str) -> dict[str, Kernel]:
    """Kernels by their mangled name. Functions that a kernel calls are in its section and count as its own."""
    kernels: dict[str, Kernel] = {}
    kind, kernel, threads_next = "", Kernel(), False
    for line in text.splitlines():
        if line.startswith("//---"):
            section = _SECTION.match(line)
            kind = section[1] if section else ""
            if section:
                kernel = kernels.setdefault(section[2], Kernel())
        elif kind == "nv.info":
            if "EIATTR_" in line:
                threads_next = "EIATTR_MAX_THREADS" in line
            elif threads_next and (word := _WORD.search(line)):
                kernel.threads = max(1, kernel.threads) * int(word[1], 16)
        elif kind == "text":
            if label := _LABEL.match(line):
                kernel.labels[label[1]] = len(kernel.code)
            elif instruction := _INSTRUCTION.match(line):
                kernel.code.append((instruction[1], instruction[2]))
    return kernels


def disassembler() -> str:
    """nvdisasm of the CUDA toolkit, or of the package that PyPI has of it alone."""
    folders = [os.path.join(home, "bin") for home in [os.environ.get("CUDA_HOME")] if home]
    folders += os.environ.get("PATH", "").split(os.pathsep)
    if compiler := shutil.which("nvcc"):
        folders.append(str(Path(compiler).resolve().parent))
    for packages in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        folders += map(str, sorted(Path(packages).glob("nvidia/*/bin")))
    if path := shutil.which("nvdisasm", path=os.pathsep.join(folders)):
        return path
    raise SystemExit(
        "no nvdisasm: run `pip install nvidia-cuda-nvdisasm` in this Python, or set CUDA_HOME to a toolkit."
    )


def disassemble(cubin: Path) -> dict[str, Kernel]:
    done = subprocess.run([disassembler(), str(cubin)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"nvdisasm does not read {cubin.name}: is it older than nvcc? {done.stderr.strip()}")
    return parse(done.stdout)


def demangle(names: list[str]) -> list[str]:
    if not shutil.which("c++filt"):
        raise SystemExit("no c++filt, which names the kernels: install binutils.")
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return done.stdout.splitlines()
