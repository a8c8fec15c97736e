"""PackedSequence as nn.* serves it; lengths=, detach_every= and return_states= as the reference does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import Kind, assert_same, each_layer, f64, flatten
from mask_cases import by_reference, drawn_packed, drawn_resets, gradients, leaves_of
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fusedrnn
from fusedrnn import reference

each_option = pytest.mark.parametrize(
    "options", [{}, {"bidirectional": True}, {"num_layers": 2, "bidirectional": True, "recompute": True}], ids=str
)
LENGTHS = [[7, 7, 3, 1], [1, 7, 2, 7], [5, 4, 4, 3, 1, 1, 1], [3], [2] * 40 + [90], list(range(1, 60))]


@each_layer
@each_option
@pytest.mark.parametrize("lengths", LENGTHS, ids=lambda v: str(len(v)))
def test_packed_sequences_are_those_of_nn(kind: Kind, options: Any, lengths: list[int]) -> None:
    theirs = kind.theirs(3, 17, dtype=f64, **{k: v for k, v in options.items() if k != "recompute"})
    ours = kind.ours(3, 17, dtype=f64, **options)
    ours.load_state_dict(theirs.state_dict())
    x, (_, hx) = drawn_packed(lengths, 3), kind.example(ours, 1, len(lengths))
    found, right = ours(x, hx), theirs(x, hx)
    for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        a, b = getattr(found[0], name), getattr(right[0], name)
        assert (a is None and b is None) or torch.equal(a, b)
    leaves = [leaves_of(m, x.data, hx) for m in (ours, theirs)]
    assert_same(gradients(found, leaves[0]), gradients(right, leaves[1]), tolerance=1e-11)


@each_layer
@each_option
@pytest.mark.parametrize("batch_first", [False, True], ids=["time-first", "batch-first"])
@pytest.mark.parametrize("lengths", [*LENGTHS, [0, 4, 0, 2], [0, 0]], ids=lambda v: str(len(v)))
def test_lengths_and_resets_agree_with_the_reference(
    kind: Kind, options: Any, batch_first: bool, lengths: list[int]
) -> None:
    module = kind.ours(3, 17, dtype=f64, batch_first=batch_first, **options)
    T, B = max(lengths) + 2, len(lengths)
    x, hx = kind.example(module, T, B)
    n = torch.tensor(lengths, dtype=torch.int32)
    resets = drawn_resets(*((B, T) if batch_first else (T, B)))
    leaves = leaves_of(module, x, hx)
    found = gradients(module(x, hx, lengths=n, resets=resets), leaves)
    assert_same(found, gradients(by_reference(module, x, hx, lengths=n, resets=resets), leaves), tolerance=1e-11)


@each_layer
def test_steps_after_the_end_are_not_read(kind: Kind) -> None:
    module = kind.ours(3, 17, dtype=f64, bidirectional=True)
    x, hx = kind.example(module, 6, 3)
    n = torch.tensor([2, 6, 4])
    right = pad_packed_sequence(module(pack_padded_sequence(x, n, enforce_sorted=False), hx)[0])[0]
    with torch.no_grad():
        x[2:, 0] = float("nan")
    y, _ = module(x, hx, lengths=n)
    torch.testing.assert_close(y, right, rtol=0, atol=1e-13)
    y.sum().backward()
    assert x.grad is not None and not x.grad[2:, 0].any()


@each_layer
@pytest.mark.parametrize("k", [1, 3, 20])
def test_detach_every_is_chunk_and_detach(kind: Kind, k: int) -> None:
    module = kind.ours(3, 17, 2, dtype=f64)
    x, hx = kind.example(module, 11, 4)
    ys, state = [], hx
    for chunk in x.split(k):
        state = state if not ys else tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
        y, state = module(chunk, state)
        ys.append(y)
    leaves = leaves_of(module, x, hx)
    found = gradients(module(x, hx, detach_every=k), leaves)
    assert_same(found, gradients((torch.cat(ys), state), leaves), tolerance=1e-11)


@each_layer
def test_detach_every_that_cannot_be_is_refused(kind: Kind) -> None:
    with pytest.raises(ValueError, match="bidirectional"):
        kind.ours(3, 4, bidirectional=True)(torch.randn(5, 2, 3), detach_every=2)
    with pytest.raises(ValueError, match="at least 1"):
        kind.ours(3, 4)(torch.randn(5, 2, 3), detach_every=0)


@pytest.mark.parametrize("batch_first", [False, True], ids=["time-first", "batch-first"])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_returned_states_agree_with_the_reference(batch_first: bool, masked: bool) -> None:
    module = fusedrnn.LSTM(3, 17, batch_first=batch_first, dtype=f64)
    x, hx = Kind("LSTM").example(module, 6, 4)
    masks = {"lengths": torch.tensor([6, 1, 3, 6]), "resets": drawn_resets(*x.shape[:2])} if masked else {}
    out = module(x, hx, return_states=True, **masks)
    states, ends = reference.unroll("lstm", x, tuple(h[0] for h in hx), module.all_weights[0], batch_first, **masks)
    right = states[0], tuple(s.unsqueeze(0) for s in ends), states[1]
    leaves = leaves_of(module, x, hx)
    assert len(flatten(out)) == 4
    assert_same(gradients(out, leaves), gradients(right, leaves), tolerance=1e-11)
