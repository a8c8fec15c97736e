"""Every sample and every error input that PyTorch keeps for its own six recurrent modules."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import SERVED_DTYPES, TOLERANCE, Results, assert_same, results
from torch import nn

import fusedrnn

pytest.importorskip("expecttest", reason="torch.testing._internal.common_modules imports it")

with warnings.catch_warnings():
    warnings.simplefilter("ignore", ImportWarning)  # of packages that only PyTorch's own tests need
    from torch.testing._internal.common_modules import ModuleErrorEnum, module_db

NAMES = ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"]
INFOS = {info.module_cls: info for info in module_db}
MODES = [True, False]


@functools.cache
def samples(name: str, dtype: torch.dtype, training: bool) -> list[Any]:
    info = INFOS[getattr(nn, name)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return list(
            info.module_inputs_func(
                info, device="cpu", dtype=dtype, requires_grad=True, training=training, with_packed_sequence=True
            )
        )


@functools.cache
def error_samples(name: str, dtype: torch.dtype) -> list[Any]:
    info = INFOS[getattr(nn, name)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return list(info.module_error_inputs_func(info, device="cpu", dtype=dtype, requires_grad=False, training=False))


def numbered(count: Callable[[str, torch.dtype], int]) -> list[Any]:
    return [
        pytest.param(name, dtype, i, id=f"{name}-{str(dtype)[6:]}-{i}")
        for name in NAMES
        for dtype in SERVED_DTYPES
        for i in range(count(name, dtype))
    ]


def construct(package: Any, name: str, arguments: Any, dtype: torch.dtype) -> Any:
    return getattr(package, name)(*arguments.args, **arguments.kwargs).to(dtype)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")  # of nn.LSTM
@pytest.mark.parametrize("training", MODES, ids=["train", "eval"])
@pytest.mark.parametrize("name, dtype, i", numbered(lambda name, dtype: len(samples(name, dtype, True))))
def test_sample_agrees_with_nn(name: str, dtype: torch.dtype, i: int, training: bool) -> None:
    sample = samples(name, dtype, training)[i]
    theirs = construct(nn, name, sample.constructor_input, dtype).train(training)
    ours = construct(fusedrnn, name, sample.constructor_input, dtype).train(training)
    ours.load_state_dict(theirs.state_dict(), strict=True)

    def run(module: nn.Module) -> Results:
        assert not sample.forward_input.kwargs
        return results(module, *sample.forward_input.args)

    # Inputs reach 9, where the gates are all but saturated and both sides lose digits.
    assert_same(run(ours), run(theirs), dtype, tolerance=5 * TOLERANCE[dtype])


@pytest.mark.parametrize("name, dtype, i", numbered(lambda name, dtype: len(error_samples(name, dtype))))
def test_error_sample_raises_what_nn_raises(name: str, dtype: torch.dtype, i: int) -> None:
    error = error_samples(name, dtype)[i]
    sample = error.module_error_input
    raised: list[BaseException] = []
    for package in (fusedrnn, nn):
        make = functools.partial(
            getattr(package, name), *sample.constructor_input.args, **sample.constructor_input.kwargs
        )
        if error.error_on == ModuleErrorEnum.CONSTRUCTION_ERROR:
            fails: Callable[[], Any] = make
        else:
            forward = sample.forward_input
            fails = functools.partial(make(), *forward.args, **forward.kwargs)
        with pytest.raises(error.error_type, match=re.compile(error.error_regex)) as info:
            fails()
        raised.append(info.value)
    assert type(raised[0]) is type(raised[1])
    assert str(raised[0]) == str(raised[1])
