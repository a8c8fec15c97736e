from __future__ import annotations

import pytest
import torch

from fusedrnn.lm import (
    activation_regularization,
    embedding_dropout,
    locked_dropout,
    temporal_activation_regularization,
)

# One row, three steps, two features.
ACTIVATIONS = [[[1.0, 2.0], [3.0, 0.0], [3.0, -4.0]]]


def test_ar_is_alpha_times_the_mean_square() -> None:
    # (1 + 4 + 9 + 0 + 9 + 16) / 6 = 6.5
    assert activation_regularization(torch.tensor(ACTIVATIONS), alpha=2.0).item() == 13.0


def test_tar_is_beta_times_the_mean_squared_change() -> None:
    # Changes (2, -2) and (0, -4): (4 + 4 + 0 + 16) / 4 = 6
    assert temporal_activation_regularization(torch.tensor(ACTIVATIONS), beta=0.5).item() == 3.0


def test_tar_compares_steps_and_not_rows() -> None:
    rows = torch.tensor([[[1.0], [1.0]], [[9.0], [9.0]]])
    assert temporal_activation_regularization(rows, beta=1.0).item() == 0.0


def test_tar_of_a_single_step_is_zero() -> None:
    assert temporal_activation_regularization(torch.ones(2, 1, 3), beta=1.0).item() == 0.0


@pytest.mark.parametrize("penalty", [activation_regularization, temporal_activation_regularization])
def test_penalties_are_differentiable_and_keep_the_dtype(penalty) -> None:
    activations = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert penalty(activations, 1.5).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda a: penalty(a, 1.5), activations)


@pytest.mark.parametrize("p", [0.25, 0.5])
def test_locked_dropout_drops_a_unit_of_a_row_for_all_steps_and_rescales_the_others(p: float) -> None:
    x = torch.rand(5, 30, 40, dtype=torch.float64) + 1
    dropped = locked_dropout(x, p)
    kept = dropped != 0
    assert torch.equal(kept, kept[:1].expand_as(kept))
    assert not torch.equal(kept[:, :1].expand_as(kept), kept)
    assert kept.double().mean().item() == pytest.approx(1 - p, abs=0.05)
    torch.testing.assert_close(dropped[kept], x[kept] / (1 - p))


def test_embedding_dropout_drops_whole_tokens_and_rescales_the_others() -> None:
    table = torch.rand(400, 3, dtype=torch.float64) + 1
    dropped = embedding_dropout(table, 0.25)
    kept = dropped[:, 0] != 0
    assert torch.equal(dropped == 0, ~kept.unsqueeze(1).expand_as(dropped))
    assert kept.double().mean().item() == pytest.approx(0.75, abs=0.07)
    torch.testing.assert_close(dropped[kept], table[kept] / 0.75)


@pytest.mark.parametrize("dropout", [locked_dropout, embedding_dropout])
def test_dropout_is_differentiable_keeps_the_dtype_and_is_off_in_evaluation(dropout) -> None:
    def drawn(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        return dropout(x, 0.5)

    shape = (3, 2, 4) if dropout is locked_dropout else (5, 4)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(drawn, x)
    assert dropout(x.half(), 0.5).dtype == torch.float16
    assert dropout(x, 0.5, training=False) is x
    with pytest.raises(ValueError, match="dropout probability has to be between 0 and 1"):
        dropout(x, 1.5)
