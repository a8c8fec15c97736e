"""Swapping nn.LSTM, nn.GRU, nn.RNN and their cells for the fused ones, inside any model, and back."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.utils import parametrize

from . import cuda
from .modules import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
from .network import SERVED_DTYPES

__all__ = ["fuse", "unfuse"]

Model = TypeVar("Model", bound=nn.Module)
Class = type[nn.Module]

FUSED: dict[Class, Class] = {
    nn.LSTM: LSTM,
    nn.GRU: GRU,
    nn.RNN: RNN,
    nn.LSTMCell: LSTMCell,
    nn.GRUCell: GRUCell,
    nn.RNNCell: RNNCell,
}
PLAIN: dict[Class, Class] = {fused: plain for plain, fused in FUSED.items()}


def fuse(model: Model) -> Model:
    """Makes every nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell and nn.RNNCell in a model the fused one, in place.

    Each module stays the object it is and gets another class, so that everything stays as it was: the parameters, which
    an optimizer may already hold, hooks, parametrizations, training flag, and every other reference to the module. For
    a fused copy, call ``fuse(copy.deepcopy(model))``.

    Args:
        model: a model that holds such modules at any depth, or one of them.

    Returns:
        The same model.

    Warns:
        UserWarning: names each recurrent module that is left as it is, and says why: a class that derives from nn.LSTM
            and the like (derive it from fusedrnn.LSTM instead), a forward of its own, TorchScript, a dtype or a device
            that has no kernels.

    After it ``isinstance(module, nn.LSTM)`` is false (``nn.RNNBase`` and ``nn.RNNCellBase`` hold): call it after code
    that initializes modules by their class.
    """
    left = []
    for name, module in list(model.named_modules()):  # names a shared module once
        plain = _recurrent_class(module, FUSED)
        if plain is None:
            continue
        if reason := _why_not(module, plain):
            left.append(f"{name or 'the model itself'} ({type(module).__name__}): {reason}")
        else:
            _change_class(module, FUSED[plain])
            module.__dict__.setdefault("recompute", False)
    if left:
        warnings.warn("fusedrnn.fuse left these modules as they are:\n  " + "\n  ".join(left), stacklevel=2)
    return model


def unfuse(model: Model) -> Model:
    """Makes every fused module in a model the nn.* one again, in place: the reverse of :func:`fuse`.

    For what knows nn.* alone: ONNX export, torch.jit.script, torch.ao.quantization. Fused modules that were not made by
    fuse become nn.* too. Only recompute= is lost, which changes no result.

    Returns:
        The same model.

    Warns:
        UserWarning: names each fused module that is left as it is, and says why: a class that derives from
            fusedrnn.LSTM and the like, a forward of its own, weight_drop, or reset_after=False.
    """
    left = []
    for name, module in list(model.named_modules()):
        fused = _recurrent_class(module, PLAIN)
        if fused is None:
            continue
        if reason := _class_of_its_own(module, fused) or _beyond_nn(module):
            left.append(f"{name or 'the model itself'} ({type(module).__name__}): {reason}")
            continue
        for option in ("recompute", "weight_drop", "reset_after"):
            module.__dict__.pop(option, None)
        _change_class(module, PLAIN[fused])
        if isinstance(module, nn.RNNBase):
            module._init_flat_weights()  # the list that nn.*'s forward reads
    if left:
        warnings.warn("fusedrnn.unfuse left these modules as they are:\n  " + "\n  ".join(left), stacklevel=2)
    return model


def _recurrent_class(module: nn.Module, classes: dict[Class, Class]) -> Class | None:
    """The one of ``classes`` that a module is of or derives from."""
    if isinstance(module, torch.jit.ScriptModule):
        name = getattr(module, "original_name", None)
        return next((c for c in classes if c.__name__ == name and c.__module__.startswith("torch.")), None)
    return next((c for c in classes if isinstance(module, c)), None)


def _label(cls: Class) -> str:
    return f"{'nn' if cls in FUSED else 'fusedrnn'}.{cls.__name__}"


def _class_of_its_own(module: nn.Module, base: Class) -> str | None:
    """Why the class of a module cannot be taken for ``base``, or None where it can."""
    if isinstance(module, torch.jit.ScriptModule):
        return "it is compiled by TorchScript; fuse the model before torch.jit"
    classes = type(module).__mro__
    if parametrize.is_parametrized(module):
        classes = classes[1:]  # the class that torch makes for one parametrized module
    if classes[0] is not base:
        return (
            f"its class derives from {_label(base)} and may change what that computes; "
            f"derive it from {_label((FUSED | PLAIN)[base])} instead"
        )
    if "forward" in vars(module):
        return "it has a forward of its own"
    return None


def _beyond_nn(module: nn.Module) -> str | None:
    """Why nn.* cannot do what a fused module does, or None where it can."""
    if getattr(module, "weight_drop", 0.0):
        return "it drops recurrent weights while it trains (weight_drop), which nn.* does not"
    if not getattr(module, "reset_after", True):
        return "its reset gate comes before the matrix product (reset_after=False), which that of nn.* does not"
    return None


def _why_not(module: nn.Module, plain: Class) -> str | None:
    """Why the kernels cannot serve a module, or None where they can."""
    if reason := _class_of_its_own(module, plain):
        return reason
    for tensor in _tensors(module):
        if tensor.dtype not in SERVED_DTYPES:
            return f"its parameters are of {tensor.dtype}; there are kernels for {', '.join(map(str, SERVED_DTYPES))}"
        if tensor.device.type not in ("cpu", "cuda", "meta"):
            return f"its parameters are on {tensor.device}; there are kernels for the CPU and CUDA"
        if tensor.is_cuda and cuda.unavailable:
            return f"its parameters are on {tensor.device}, and there are no CUDA kernels here ({cuda.unavailable})"
    return None


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _change_class(module: nn.Module, target: Class) -> None:
    """Gives a module another class, below the one that a parametrization has made for it."""
    own: dict[str, Any] = {}
    if parametrize.is_parametrized(module):
        made = type(module)
        own = {name: value for name, value in vars(made).items() if name not in ("__dict__", "__weakref__", "__doc__")}
        target = type(f"Parametrized{target.__name__}", (target,), own)
    module.__class__ = target
