"""What keeps a recurrent language model from learning its text by heart.

Dropout that suits recurrent layers (Gal and Ghahramani 2016, A Theoretically Grounded Application of Dropout in
Recurrent Neural Networks), and penalties on what a layer puts out (Merity et al. 2017, Regularizing and Optimizing LSTM
Language Models), which are added to the loss: their gradients reach the recurrent weights through the activations of
the last layer. Dropout of the recurrent weights is an argument of the layers: ``fusedrnn.LSTM(..., weight_drop=0.5)``.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def locked_dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """Dropout with one mask for all steps: a unit that is dropped for a row is dropped for its whole sequence.

    Gal and Ghahramani (2016) call it variational dropout. Each call draws a mask of its own.

    Args:
        x: ``[T, B, H]``, of any floating type.
        p: the probability of zeroing each unit of each row; the others are scaled by 1 / (1 - p).
        training: False returns x.

    Raises:
        ValueError: p is no probability.
    """
    if not training or not p:
        return x
    return x * F.dropout(x.new_ones(1, *x.shape[1:]), p)


def embedding_dropout(table: Tensor, p: float, training: bool = True) -> Tensor:
    """Drops whole tokens: each row of the table becomes zero wherever it is used (Merity et al. 2017, section 4.3).

    Args:
        table: ``[V, I]``, of any floating type.
        p: the probability of zeroing each row; the others are scaled by 1 / (1 - p).
        training: False returns the table.

    Raises:
        ValueError: p is no probability.
    """
    if not training or not p:
        return table
    return table * F.dropout(table.new_ones(len(table), 1), p)


def activation_regularization(dropped: Tensor, alpha: float) -> Tensor:
    """AR, alpha * mean(dropped ** 2): keeps activations small (section 4.6 of Merity et al.).

    Args:
        dropped: activations of the last layer after dropout, of any shape and floating type.

    Returns:
        A scalar of the same type.
    """
    return alpha * dropped.square().mean()


def temporal_activation_regularization(raw: Tensor, beta: float) -> Tensor:
    """TAR, beta * mean((h_t - h_(t-1)) ** 2): keeps activations from changing fast (section 4.6 of Merity et al.).

    Args:
        raw: activations of the last layer before dropout, ``[B, T, H]``.

    Returns:
        A scalar of the same type; 0 where T is 1 and nothing can change.
    """
    if raw.shape[1] < 2:
        return raw.new_zeros(())
    return beta * (raw[:, 1:] - raw[:, :-1]).square().mean()
