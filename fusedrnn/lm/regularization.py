"""Penalties on what a recurrent layer puts out (Merity et al. 2017, Regularizing and Optimizing LSTM Language Models).

Both are added to the loss. Their gradients reach the recurrent weights through the activations of the last layer.
"""

from __future__ import annotations

from torch import Tensor


def activation_regularization(dropped: Tensor, alpha: float) -> Tensor:
    """AR, alpha * mean(dropped ** 2): keeps activations small (section 4.6 of the paper).

    Args:
        dropped: activations of the last layer after dropout, of any shape and floating type.

    Returns:
        A scalar of the same type.
    """
    return alpha * dropped.square().mean()


def temporal_activation_regularization(raw: Tensor, beta: float) -> Tensor:
    """TAR, beta * mean((h_t - h_(t-1)) ** 2): keeps activations from changing fast (section 4.6 of the paper).

    Args:
        raw: activations of the last layer before dropout, ``[B, T, H]``.

    Returns:
        A scalar of the same type; 0 where T is 1 and nothing can change.
    """
    if raw.shape[1] < 2:
        return raw.new_zeros(())
    return beta * (raw[:, 1:] - raw[:, :-1]).square().mean()
