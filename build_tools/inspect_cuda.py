"""The CUDA kernels as they were compiled: what each is meant to be, and the tables of docs/cuda-kernels.md."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import sass
from docs_tables import markdown
from nvcc import Resources
from occupancy import blocks_at_once

TYPES = {"double": "float64", "float": "float32", "__half": "float16", "__nv_bfloat16": "bfloat16"}
SIZES = {"unsigned short": "2 bytes", "unsigned int": "4 bytes", "unsigned long long": "8 bytes"}
CELLS = {"Lstm": "LSTM", "Gru": "GRU", "Rnn<Tanh>": "RNN tanh", "Rnn<Relu>": "RNN relu"}


@dataclass(frozen=True)
class Inspected:
    """One kernel, by its template arguments."""

    architecture: int
    kernel: str  # grid_forward
    cell: str
    type: str
    shape: str  # what else sets it apart: rows of a thread, or warps, tiles and chunks in registers
    masked: bool
    takes: Resources
    code: sass.Kernel

    @property
    def label(self) -> str:
        masked = ", masked" if self.masked else ""
        return f"{self.kernel}{masked}, {self.type or 'every type'}{self.shape and f' <{self.shape}>'}"

    @property
    def blocks_at_once(self) -> int:
        """On a multiprocessor, as far as registers and threads allow: dynamic shared memory depends on H."""
        return blocks_at_once(self.architecture, self.code.threads, self.takes.registers, self.takes.static_shared)


def template_arguments(demangled: str) -> tuple[str, list[str]]:
    """The function's name without its namespaces, and its template arguments, if it has any."""
    plain = re.sub(r"\bfusedrnn::(cuda::)?", "", demangled.removeprefix("void "))
    if "<" not in plain.split("(")[0]:
        return plain.split("(")[0].removesuffix("_kernel"), []
    name, rest = plain.split("<", 1)
    arguments, depth = [""], 1
    for character in rest:
        depth += (character == "<") - (character == ">")
        if depth == 0:
            break
        if character == "," and depth == 1:
            arguments.append("")
        else:
            arguments[-1] += character
    return name.removesuffix("_kernel"), [argument.strip() for argument in arguments]


def inspect(source: Path, architecture: int, cubin: Path, takes: dict[str, Resources]) -> Iterator[Inspected]:
    kernels = sass.disassemble(cubin)
    for mangled, demangled in zip(takes, sass.demangle(list(takes)), strict=True):
        name, arguments = template_arguments(demangled)
        # The sum over rows is the same for every cell, flags of rows for every type too.
        cell, stored, *others = arguments if arguments and arguments[0] in CELLS else ["", *(arguments or [""])]
        type = "tf32" if "true" in others else {**TYPES, **SIZES}.get(stored, "")
        masked = name.startswith("masked_step") or any(other.startswith("Masked") for other in others)
        shapes = [other.removeprefix("GridShape<").removesuffix(">") for other in others]
        shape = next((shape for shape in shapes if shape[0].isdigit()), "")
        yield Inspected(
            architecture,
            name.removeprefix("masked_"),
            CELLS.get(cell, "every cell"),
            type,
            shape,
            masked,
            takes[mangled],
            kernels[mangled],
        )


def multiplies_on_tensor_cores(kernel: str, type: str, architecture: int) -> bool:
    first = {"float16": 75, "bfloat16": 80, "tf32": 80}
    return kernel.startswith("grid") and architecture >= first.get(type, sys.maxsize)


def what_is_wrong(it: Inspected) -> Iterator[str]:
    """The compiler's own word on local memory covers what it reserved; this is what the machine does."""
    if n := it.code.count(*sass.LOCAL):
        yield f"{n} accesses of local memory"
    meant, found = multiplies_on_tensor_cores(it.kernel, it.type, it.architecture), it.code.count("HMMA") > 0
    if meant != found:
        yield "no tensor core instruction" if meant else "tensor cores, which are not meant"
    if it.kernel.startswith(("grid", "block")):
        if not it.code.product_loops():
            yield "no loop that multiplies was found"
        for opcode, n in sass.product_loads(it.code).items():
            if "128" not in opcode.split("."):
                yield f"{n} {opcode} in a product: not 128 bits"
            if opcode.startswith("LD."):
                yield f"{n} {opcode} in a product: the compiler does not know that memory, shared or global"


def by_label(kernels: list[Inspected]) -> dict[str, list[Inspected]]:
    order = ["", *SIZES.values(), "float64", "float32", "tf32", "float16", "bfloat16"]
    groups: dict[str, list[Inspected]] = {}
    for it in sorted(kernels, key=lambda it: (it.kernel, it.masked, order.index(it.type), it.shape, it.architecture)):
        groups.setdefault(it.label, []).append(it)
    return groups


def by_architecture(kernels: list[Inspected], cell: Callable[[Inspected], str]) -> str:
    architectures = sorted({it.architecture for it in kernels})
    rows = []
    for label, group in by_label(kernels).items():
        of = {it.architecture: cell(it) for it in group}
        rows.append([label, *(of.get(architecture, "") for architecture in architectures)])
    return markdown(["kernel", *(f"sm_{architecture}" for architecture in architectures)], rows)


def occupancy_table(kernels: list[Inspected]) -> str:
    """Of the cell that takes the most registers: how many, and blocks at once of so many warps."""
    return by_architecture(
        sorted(kernels, key=lambda it: it.takes.registers),
        lambda it: f"{it.takes.registers}: {it.blocks_at_once} of {it.code.threads // 32}",
    )


def instruction_table(kernels: list[Inspected]) -> str:
    """Tensor core instructions, 128-bit loads of global memory, of shared memory."""
    return by_architecture(
        [it for it in kernels if it.cell == "LSTM" and it.kernel.startswith(("block", "grid"))],
        lambda it: " / ".join(
            str(n) for n in (it.code.count("HMMA"), it.code.count("LDG", width=128), it.code.count("LDS", width=128))
        ),
    )
