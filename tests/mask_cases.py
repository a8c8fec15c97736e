"""What the tests of masks share: modules of ours by the reference, under every option that their calls have."""

from __future__ import annotations

from typing import Any

import torch
from cases import cotangent, f64, flatten, widen
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from fusedrnn import reference


def drawn_resets(*size: int, share: float = 0.3) -> Tensor:
    return torch.rand(size) < share


def drawn_packed(lengths: list[int], features: int, dtype: torch.dtype = f64) -> PackedSequence:
    """Random rows for entries of these lengths; the data is a leaf that requires gradients."""
    x = torch.randn(max(lengths), len(lengths), features, dtype=dtype)
    p = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=sorted(lengths, reverse=True) == lengths)
    return p._replace(data=p.data.requires_grad_())


def gradients(out: Any, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a result, and the gradients of leaves, by name."""
    results = flatten(out)
    grads = torch.autograd.grad(results, list(leaves.values()), [cotangent(r) for r in results])
    return {str(i): r.detach() for i, r in enumerate(results)} | dict(zip(leaves, grads, strict=True))


def leaves_of(module: Any, x: Tensor, hx: Any) -> dict[str, Tensor]:
    return {"x": x, **{f"hx{i}": h for i, h in enumerate(flatten(hx))}, **dict(module.named_parameters())}


def by_reference(
    module: Any,
    input: Any,
    hx: Any = None,
    *,
    parameters: dict[str, Tensor] | None = None,
    embedding: Tensor | None = None,
    resets: Any = None,
    **masks: Any,
) -> Any:
    """What a module of ours returns, by the reference with its parameters or others; hx and results as of the module.

    Tokens are embedded, unbatched input becomes a batch of one, and a packed sequence is padded.
    """
    if isinstance(input, PackedSequence):
        to_padded, to_packed, lengths = places(input)
        if module.batch_first:
            to_padded = to_padded.T
        resets = None if resets is None else resets.data[to_padded]
        y, states, *c = by_reference(module, input.data[to_padded], hx, parameters=parameters, embedding=embedding,
                                     resets=resets, lengths=lengths, **masks)  # fmt: skip
        steps, entries = to_packed[::-1] if module.batch_first else to_packed
        y, *c = (PackedSequence(s[steps, entries], *input[1:]) for s in (y, *c))
        return y, states, *c
    x = input if embedding is None else F.embedding(input, embedding)
    if x.dim() == 2:
        batch = 0 if module.batch_first else 1
        states = None if hx is None else tuple(h.unsqueeze(1) for h in flatten(hx))
        resets = None if resets is None else resets.unsqueeze(batch)
        y, out, *c = by_reference(module, x.unsqueeze(batch), states, parameters=parameters, resets=resets, **masks)
        ends = tuple(s.squeeze(1) for s in flatten(out))
        return y.squeeze(batch), ends if len(ends) == 2 else ends[0], *(s.squeeze(batch) for s in c)
    parameters = dict(module.named_parameters()) if parameters is None else parameters
    groups = [[parameters[name] for name in names] for names in module._all_weights]
    groups = [g if module.bias else [*g[:2], None, None, *g[2:]] for g in groups]
    if module.training and module.weight_drop:
        groups = [[g[0], F.dropout(g[1], module.weight_drop), *g[2:]] for g in groups]
    y, ends, *c = reference.network(
        module.mode.lower(),
        x,
        zero_states(module, x) if hx is None else flatten(hx),
        groups,
        module.bidirectional,
        module.batch_first,
        module.dropout,
        module.training,
        resets,
        **masks,
    )
    return y, ends if len(ends) == 2 else ends[0], *c


def places(packed: PackedSequence) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
    """The packed row of each padded one ``[T, B]`` (0: none); step and entry of each packed row; the lengths."""
    sizes = packed.batch_sizes
    order = torch.arange(int(sizes[0])) if packed.sorted_indices is None else packed.sorted_indices
    table = torch.zeros(len(sizes), len(order), dtype=torch.int64)
    steps, entries = [], []
    for t, size in enumerate(sizes.tolist()):
        for b in order[:size].tolist():
            table[t, b] = len(steps)
            steps.append(t), entries.append(b)
    lengths = torch.tensor([entries.count(b) for b in range(len(order))])
    return table, (torch.tensor(steps), torch.tensor(entries)), lengths


def zero_states(module: Any, x: Tensor) -> list[Tensor]:
    sizes = [module.proj_size or module.hidden_size, module.hidden_size]
    size = module.num_layers * (2 if module.bidirectional else 1), x.shape[0 if module.batch_first else 1]
    return [x.new_zeros(*size, H) for H in sizes[: 2 if module.mode == "LSTM" else 1]]


def widened(module: Any) -> dict[str, Tensor]:
    """The parameters in float64."""
    return {name: widen(p) for name, p in module.named_parameters()}
