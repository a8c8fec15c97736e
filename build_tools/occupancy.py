"""How many blocks of a kernel a multiprocessor holds at once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Multiprocessor:
    """Limits of "Technical Specifications per Compute Capability" in the CUDA programming guide. Shared memory is in
    bytes, and each block takes `reserved` of it besides its own."""

    warps: int
    blocks: int
    shared: int
    reserved: int = 1024
    shared_unit: int = 128

    @property
    def shared_of_block(self) -> int:
        """The most that one block may ask for."""
        return self.shared - self.reserved


MULTIPROCESSORS = {
    75: Multiprocessor(32, 16, 64 * 1024, reserved=0, shared_unit=256),
    80: Multiprocessor(64, 32, 164 * 1024),
    86: Multiprocessor(48, 16, 100 * 1024),
    89: Multiprocessor(48, 24, 100 * 1024),
    90: Multiprocessor(64, 32, 228 * 1024),
    100: Multiprocessor(64, 32, 228 * 1024),
    120: Multiprocessor(48, 24, 100 * 1024),
}

REGISTERS = 64 * 1024  # of a multiprocessor, of every architecture
REGISTER_UNIT = 256  # a warp gets whole units
SCHEDULERS = 4  # each has a quarter of the registers, so warps come in fours


def _round_up(n: int, unit: int) -> int:
    return -(-n // unit) * unit


def blocks_at_once(architecture: int, threads: int, registers: int, shared: int) -> int:
    """threads: of a block; shared: static and dynamic, of a block."""
    limits = MULTIPROCESSORS[architecture]
    warps = -(-threads // 32)
    warps_with_registers = REGISTERS // _round_up(registers * 32, REGISTER_UNIT) // SCHEDULERS * SCHEDULERS
    by_shared = limits.shared // max(1, _round_up(shared + limits.reserved, limits.shared_unit))
    return min(limits.blocks, limits.warps // warps, warps_with_registers // warps, by_shared)
