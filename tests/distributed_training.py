"""A program of test_training_tools.py: one of two processes that train a model together.

    python distributed_training.py ddp|fully_shard RANK RENDEZVOUS OUT

The process of rank 0 writes the parameters that come out to OUT.
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn

import fusedrnn

WORLD, STEPS = 2, 3


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.LSTM(3, 4, 2, bidirectional=True, dtype=torch.float64)


def batches() -> list[Tensor]:
    """A batch of 4 for each step, of another length each; a process takes its half."""
    torch.manual_seed(1)
    return [torch.randn(5 + step, 2 * WORLD, 3, dtype=torch.float64) for step in range(STEPS)]


def train(model: nn.Module, batches: list[Tensor]) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for x in batches:
        optimizer.zero_grad()
        model(x)[0].sin().mean().backward()
        optimizer.step()


def main(way: str, rank: int, rendezvous: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=WORLD)
    fused = fusedrnn.fuse(model())
    assert isinstance(fused, fusedrnn.LSTM)
    halves = [x.chunk(WORLD, 1)[rank] for x in batches()]
    if way == "ddp":
        train(nn.parallel.DistributedDataParallel(fused), halves)
        parameters = {name: p.detach() for name, p in fused.named_parameters()}
    else:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        fully_shard(fused, mesh=init_device_mesh("cpu", (WORLD,)))
        train(fused, halves)
        parameters = {name: p.detach().full_tensor() for name, p in fused.named_parameters()}  # type: ignore[operator]
    if rank == 0:
        torch.save(parameters, out)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
