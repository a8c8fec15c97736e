"""Memory that the CPU kernels keep from one call to the next."""

from __future__ import annotations

import torch


def keep_memory(limit: int) -> None:
    """Sets how many bytes of freed buffers are kept for later calls; 256 MiB until this is called.

    Kept are buffers of 128 KiB and more that only backward sees, and working memory: fresh memory costs a page fault
    for every 4 KiB. What is kept beyond the new limit is freed at once, so ``keep_memory(0)`` frees all and keeps none.

    Raises:
        ValueError: the limit is negative.
    """
    if limit < 0:
        raise ValueError(f"keep_memory: expected a limit of at least 0 bytes, got {limit}")
    torch.ops.fusedrnn.cpu_keep_memory(limit)
