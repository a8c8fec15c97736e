from __future__ import annotations

import pytest
import torch

from fusedrnn.lm import activation_regularization, temporal_activation_regularization

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
