"""Training in several processes that ``torchrun`` starts, each of which reads some rows of every batch.

Where a state is carried, a row is a stretch of the text, so that each process owns the state of its rows. Gradients are
averaged over the processes (DistributedDataParallel, Li et al. 2020): with the same rows they are those of one process.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .data import Batch
from .errors import RecipeError


@dataclass(frozen=True)
class Processes:
    """The processes that train one model together. All of them must call what speaks to the others.

    Attributes:
        rank: which of them this is; the first one, 0, is the one that writes.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def require_rows(self, rows: int) -> None:
        """Raises RecipeError where a batch cannot be split into equal parts."""
        if rows % self.size:
            raise RecipeError(f"batch_size: expected a multiple of the {self.size} processes, got {rows}")

    def part(self, batch: Batch, device: torch.device) -> Batch:
        """This process's rows of a batch, on a device."""
        inputs, targets = (tensor.tensor_split(self.size)[self.rank].to(device) for tensor in batch)
        return inputs, targets

    def wrap(self, model: nn.Module) -> nn.Module:
        """What to call in place of the model for its gradients to be averaged."""
        return model if self.size == 1 else DistributedDataParallel(model)

    def part_ways(self, seed: int) -> None:
        """Gives each process but the first random numbers of its own, for dropout; the models must be drawn before."""
        if self.rank:
            torch.manual_seed((seed + (self.rank << 40)) % 2**63)

    def sum(self, *values: float) -> list[float]:
        """The sums over all processes, the same bits in each."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=_device())
        dist.all_reduce(total)
        return total.tolist()

    def mean(self, *values: float) -> list[float]:
        """The means over all processes, the same bits in each."""
        return [value / self.size for value in self.sum(*values)]

    def join_rows(self, states: tuple[Tensor, ...] | None) -> list[Tensor] | None:
        """The states ``[L, B, H]`` of all rows, given those of each process's."""
        if states is None:
            return None
        if self.size == 1:
            return list(states)
        parts = [[torch.empty_like(state) for _ in range(self.size)] for state in states]
        for state, part in zip(states, parts, strict=True):
            dist.all_gather(part, state.contiguous())
        return [torch.cat(part, 1) for part in parts]

    def split_rows(self, states: list[Tensor] | None, device: torch.device) -> tuple[Tensor, ...] | None:
        """The opposite: copies of what :meth:`join_rows` has joined, of this process's rows."""
        if states is None:
            return None
        return tuple(s.tensor_split(self.size, dim=1)[self.rank].to(device, copy=True) for s in states)

    def join(self, mine: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The CPU tensors of all processes, under names that :meth:`find` knows."""
        if self.size == 1:
            return dict(mine)
        everyones: list[Mapping[str, Tensor]] = [{}] * self.size
        dist.all_gather_object(everyones, dict(mine))
        return {_name(name, rank): tensor for rank, one in enumerate(everyones) for name, tensor in one.items()}

    def find(self, everyones: Mapping[str, Tensor], name: str) -> Tensor | None:
        """What this process gave :meth:`join` under that name; None where there was no such process."""
        return everyones.get(_name(name, self.rank))


def _name(name: str, rank: int) -> str:
    return f"{name} of process {rank}" if rank else name


ALONE = Processes()


def _device() -> torch.device:
    """Where the processes exchange tensors."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def local_device(device: str) -> torch.device:
    """The device that this process computes on: of several GPUs that "cuda" names, the one that torchrun gave it.

    Raises:
        RecipeError: there is no such device.
    """
    try:
        found = torch.device(device)
        if found.type == "cuda" and found.index is None:
            found = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise RecipeError(f"device: {device!r} cannot be used: {str(error).splitlines()[0]}") from error
    return found


def join_processes(device: torch.device) -> Processes:
    """The processes that torchrun started, which speak to each other from now on to their end; or this one alone.

    They speak through NCCL where they compute on GPUs, and through gloo otherwise. Where the caller has initialized
    torch.distributed, its default group is taken.
    """
    if not dist.is_available() or (not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", 1)) == 1):
        return ALONE
    if not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        # A second group after the end of the first one may wait for ever.
        atexit.register(dist.destroy_process_group)
    return Processes(dist.get_rank(), dist.get_world_size())


def is_first_process() -> bool:
    """Whether this process is the one that writes, before :func:`join_processes` has joined it to the others."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    return int(os.environ.get("RANK", 0)) == 0
