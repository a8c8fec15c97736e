"""resets, lengths, packed sequences, detach_every and gradients of c of every step on the device, against the reference
in float64."""

from __future__ import annotations

import pytest
import torch
from cases import Kind, assert_same, each_layer, f32, f64
from device_cases import (
    DTYPES,
    Case,
    assert_bitwise,
    assert_close,
    draw,
    exact,
    fused,
    leaves,
    masks_on,
    moved,
    on_device,
    poison,
    results,
)
from places import Place
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from fusedrnn.ops import BACKWARD, CELLS, FORWARD, SAVING

each_cell = pytest.mark.parametrize("cell", CELLS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
each_mask = pytest.mark.parametrize(
    "masks",
    [
        ("resets",),
        ("lengths",),
        ("packed",),
        ("detach_every",),
        ("states",),
        ("whole", "resets", "states"),
        ("resets", "lengths", "detach_every", "states"),
        ("resets", "packed", "detach_every", "states"),
    ],
    ids="-".join,
)
# T, B, I, H: as in test_layers.py.
SIZES = [
    (1, 1, 1, 1),
    (7, 5, 8, 24),
    (4, 3, 7, 15),
    (3, 17, 33, 16),
    (9, 1, 3, 17),
    (5, 7, 2, 33),
    (6, 20, 1, 7),
    (2, 19, 15, 40),
]


def check(case: Case, place: Place) -> None:
    assert_close(on_device(case, place.device), exact(case), case)


def cases_of(cell: str, dtype: torch.dtype, masks: tuple[str, ...]) -> list[Case]:
    """Every size in one of the layouts, which take turns."""
    made = []
    for i, size in enumerate(SIZES):
        reverse = i % 2 == 1 and "detach_every" not in masks
        states = ("[B, H]", "none", "[1, B, H]")[i % 3]
        made.append(Case(cell, size, dtype, i // 2 % 2 == 1, reverse, i % 3 != 1, states, masks=masks))
    return made


@each_cell
@each_dtype
@each_mask
def test_agrees_with_the_reference(place: Place, cell: str, dtype: torch.dtype, masks: tuple[str, ...]) -> None:
    cases = cases_of(cell, dtype, masks)
    place.check_each(cases if "lengths" in masks else place.some(cases), lambda case: check(case, place))


@each_cell
@each_dtype
@pytest.mark.parametrize("recompute", [False, True], ids=["saved", "recomputed"])
def test_all_masks_together(place: Place, cell: str, dtype: torch.dtype, recompute: bool) -> None:
    """Without biases too, and for one step."""
    masks = "resets", "states"
    cases = [
        Case(cell, (6, 5, 3, 19), dtype, reverse=True, bias=False, masks=(*masks, "lengths"), recompute=recompute),
        Case(cell, (6, 5, 3, 19), dtype, masks=(*masks, "packed", "detach_every"), recompute=recompute),
        Case(cell, (1, 7, 3, 19), dtype, one_step=True, masks=masks[:1], recompute=recompute),
    ]
    place.check_each(place.some(cases), lambda case: check(case, place))


@each_cell
@pytest.mark.parametrize("masks", [("resets", "lengths", "states"), ("packed", "states")], ids="-".join)
def test_gradients_of_some_outputs_only(place: Place, cell: str, masks: tuple[str, ...]) -> None:
    used = [("y",), ("h_n",), *([("c_n",), ("c",), ("y", "c")] if cell == "lstm" else [])]
    cases = [Case(cell, (4, 4, 5, 17), f32, reverse=i == 1, used=names, masks=masks) for i, names in enumerate(used)]
    place.check_each(place.some(cases), lambda case: check(case, place))


@each_cell
@each_dtype
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_steps_after_the_end_are_not_read(place: Place, cell: str, dtype: torch.dtype, reverse: bool) -> None:
    """Nor are their gradients, and what the memory held before is not either."""
    case = Case(cell, (6, 5, 3, 18), dtype, reverse=reverse, masks=("lengths", "states"))
    clean = on_device(case, place.device)
    args, grads = draw(case)
    over = torch.arange(6).unsqueeze(1) >= masks_on(case, torch.device("cpu")).lengths
    args = args._replace(x=args.x.detach().masked_fill(over.unsqueeze(2), float("nan")))
    grads = {n: g.masked_fill(over.unsqueeze(2), float("inf")) if g.dim() == 3 else g for n, g in grads.items()}
    poison(place.device)
    found = results(fused, case, leaves(args, place.device), {n: g.to(place.device) for n, g in grads.items()})
    assert_bitwise(found, clean)
    assert not any(found[name][over.to(place.device)].any() for name in found.keys() & {"y", "c", "dx"})


@each_cell
def test_nothing_passes_a_reset_or_a_detached_step(place: Place, cell: str) -> None:
    """Not even NaN."""
    for masks, cut in [(("resets",), "resets"), (("detach_every",), "detach_every")]:
        case = Case(cell, (5, 4, 3, 16), f32, masks=masks)
        args = leaves(draw(case).args, place.device)
        args = args._replace(x=args.x.detach().clone().requires_grad_())  # which is not what is drawn
        before = masks_on(case, torch.device(place.device))
        if cut == "resets":
            assert before.resets is not None
            t, b = (int(i) for i in before.resets[1:].nonzero()[0])
            t += 1
        else:
            t, b = 4, 0
        y = fused(case, args)[0]
        dx, dh0 = torch.autograd.grad(y[t:, b].sum(), [args.x, args.h0])
        assert dx[t, b].any() and not dx[:t].any() and not dh0.any()
        if cut == "resets":
            with torch.no_grad():
                args.x[t - 1, b] = float("nan")
                y = fused(case, args)[0]
            assert y[t - 1, b].isnan().all() and y[t:, b].isfinite().all()


@pytest.mark.any_algorithm
@each_cell
def test_operators_with_masks_pass_opcheck_on_the_device(place: Place, cell: str) -> None:
    place.needs_torchs_own()
    case = Case(cell, (3, 2, 4, 5), f64, batch_first=True, reverse=True, masks=("resets", "lengths"))
    args, masks = leaves(draw(case).args, place.device), masks_on(case, torch.device(place.device))
    torch.library.opcheck(SAVING[cell], (*args, None, True, True, False, *masks))
    fixed = [None if t is None else t.detach() for t in args]
    torch.library.opcheck(FORWARD[cell], (*fixed, None, True, True, *masks[:3]))
    y, h_n, c_n, saved, c = SAVING[cell](*fixed, None, True, True, False, *masks)
    grads = (y, h_n, *((c_n, c) if CELLS[cell].states == 2 else (None, None)))
    torch.library.opcheck(
        BACKWARD[cell], (*grads[:3], *fixed, None, y, saved, c, True, True, True, True, *masks, grads[3])
    )


def packed_on(device: str, lengths: list[int], dtype: torch.dtype) -> PackedSequence:
    padded = torch.randn(max(lengths), len(lengths), 3, dtype=dtype)
    x = pack_padded_sequence(padded, torch.tensor(lengths), enforce_sorted=False)
    return x.to(device)._replace(data=x.data.to(device).requires_grad_())


@pytest.mark.parametrize("lengths", [[5, 5, 3, 1], [1, 6, 2, 6, 3], [4, 4, 4]], ids=str)
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
@each_layer
def test_packed_sequences_agree_with_nn(place: Place, kind: Kind, options: dict, lengths: list[int]) -> None:
    ours, theirs = kind.pair(3, 17, dtype=f64, **options)
    x, (_, hx) = packed_on("cpu", lengths, f64), kind.example(ours, 1, len(lengths))
    there = x.to(place.device)
    there = there._replace(data=there.data.detach().requires_grad_())
    found = gradients(ours.to(place.device)(there, moved(hx, place.device)), there.data, ours)
    assert_same({n: t.cpu() for n, t in found.items()}, gradients(theirs(x, hx), x.data, theirs), f64, 1e-11)


def gradients(out: tuple, data: torch.Tensor, module: nn.Module) -> dict[str, torch.Tensor]:
    """y and h_n of a packed result, and the gradients of its sum with them."""
    y, h_n = out[0].data, out[1][0] if isinstance(out[1], tuple) else out[1]
    leaves = {"x": data, **dict(module.named_parameters())}
    grads = torch.autograd.grad(y.sin().sum() + h_n.cos().sum(), list(leaves.values()))
    return {"y": y.detach(), "h_n": h_n.detach(), **dict(zip(leaves, grads, strict=True))}


@pytest.mark.parametrize("batch_first", [False, True], ids=["time-first", "batch-first"])
@each_layer
def test_operators_do_not_look_up_tokens_after_the_end(place: Place, kind: Kind, batch_first: bool) -> None:
    module = kind.ours(4, 9, 2, bidirectional=True, batch_first=batch_first, dtype=f64)
    lengths, table = torch.tensor([0, 3, 6, 1]), torch.randn(3, 4, dtype=f64, requires_grad=True)
    tokens = torch.randint(3, (6, 4)).where(torch.arange(6).unsqueeze(1) < lengths, -1)
    resets = torch.rand(6, 4) < 0.3
    rows = nn.functional.embedding(tokens.clamp(min=0), table)
    both = [rows, tokens, resets]
    rows, tokens, resets = (t.transpose(0, 1) for t in both) if batch_first else both
    (right,) = torch.autograd.grad(module(rows, lengths=lengths, resets=resets)[0].sin().sum(), table)
    there = table.detach().to(place.device).requires_grad_()
    lengths, tokens, resets = (t.to(place.device) for t in (lengths, tokens, resets))
    y = module.to(place.device)(tokens, embedding=there, lengths=lengths, resets=resets)[0]
    (found,) = torch.autograd.grad(y.sin().sum(), there)
    torch.testing.assert_close(found.cpu(), right, rtol=0, atol=1e-11)
