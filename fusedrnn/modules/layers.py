"""LSTM, GRU and RNN with the constructor, parameters and results of nn.LSTM, nn.GRU and nn.RNN.

They derive from nn.RNNBase, which brings parameters, initialisation and state_dict, and not from nn.LSTM and the like,
which torch.compile refuses to trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn.utils.rnn import PackedSequence

from .. import functional


class _Layers(nn.RNNBase):
    """What the three share: the forward pass, once the states are a tuple."""

    _wrong_dimensions = "{}: Expected input to be 2D or 3D, got {}D instead"

    def __init__(self, *args: Any, recompute: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.recompute = recompute

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("recompute", False)  # pickled by an earlier version

    def flatten_parameters(self) -> None:
        """Does nothing: the kernels take the parameters where they are. Kept for code written for nn.*."""

    def _weights(self) -> Sequence[Tensor]:
        # Looked up at every call, so that parametrizations and replaced parameters are seen.
        names, parameters = self._flat_weights_names, self._parameters
        try:
            return itemgetter(*names)(parameters)  # the lookup of a module's attribute is slow
        except KeyError:
            return [getattr(self, name) for name in names]

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        # The base class looks at a list of weights that functional_call does not replace.
        dtype = self._weights()[0].dtype
        if input.dtype != dtype and not torch._C._is_any_autocast_enabled():
            raise ValueError(
                f"RNN input dtype ({input.dtype}) does not match weight dtype ({dtype}). "
                f"Convert input: input.to({dtype}), or convert model: model.to({input.dtype})"
            )
        if input.size(-1) != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {input.size(-1)}"
            )

    def _is_batched(self, input: Tensor, embedding: Tensor | None) -> bool:
        if isinstance(input, PackedSequence):
            raise NotImplementedError(
                "fusedrnn does not serve PackedSequence yet; pass the padded tensor, or use nn.* for packed input"
            )
        dims = input.dim()
        if embedding is not None:
            if dims not in (1, 2):
                raise ValueError(
                    f"{type(self).__name__}: Expected tokens to be 1D or 2D with embedding, got {dims}D instead"
                )
            return dims == 2
        if dims not in (2, 3):
            raise ValueError(self._wrong_dimensions.format(type(self).__name__, dims))
        return dims == 3

    def _run(
        self, cell: str, input: Tensor, states: Sequence[Tensor] | None, hx: Any, embedding: Tensor | None
    ) -> tuple[Tensor, ...]:
        """The layers over batched input. What does not fit is refused further down, and only then looked for."""
        try:
            return functional.network(
                cell,
                input,
                states,
                self._weights(),
                embedding,
                self.num_layers,
                self.bidirectional,
                self.batch_first,
                self.dropout if self.training else 0.0,
                self.recompute,
            )
        except RuntimeError:  # NotImplementedError is one
            if not is_compiling():
                self._check(input, hx, embedding)
            raise

    def _check(self, input: Tensor, hx: Any, embedding: Tensor | None) -> None:
        if embedding is not None:
            self.check_input(embedding, None)
            # The checks of states ask the input for its batch size alone.
            input = embedding.new_empty((*input.shape, self.input_size), device="meta")
        if hx is not None:
            self.check_forward_args(input, hx, None)
        elif embedding is None:
            self.check_input(input, None)

    def _run_one_state(
        self, cell: str, input: Tensor, hx: Tensor | None, embedding: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """forward of the cells that have one state."""
        batched = self._is_batched(input, embedding)
        if hx is not None and hx.dim() != (3 if batched else 2):
            kind = "batched 3-D" if batched else "unbatched 2-D"
            raise RuntimeError(
                f"For {kind} input, hx should also be {3 if batched else 2}-D but got {hx.dim()}-D tensor"
            )
        if not batched:
            input = input.unsqueeze(0 if self.batch_first else 1)
            hx = None if hx is None else hx.unsqueeze(1)
        y, h_n = self._run(cell, input, None if hx is None else (hx,), hx, embedding)
        return (y, h_n) if batched else (y.squeeze(0 if self.batch_first else 1), h_n.squeeze(1))


class LSTM(_Layers):
    """A drop-in for :class:`torch.nn.LSTM`: same constructor, parameters, initialisation, results and errors.

    Args:
        input_size: I, features of the input.
        hidden_size: H, features of each state.
        num_layers, bias, batch_first, dropout, bidirectional, device, dtype: as in nn.LSTM.
        proj_size: P, 0 for none: h is projected to P units, with parameters weight_hr_l*, as in nn.LSTM; c keeps H. It
            has no kernel, but loops over the steps in plain PyTorch: about as fast as nn.LSTM, which does the same,
            and without recompute.
        recompute: keep no gates for backward, which computes them again: less memory, more time.

    ``forward(input, hx=None, *, embedding=None)`` takes ``[T, B, I]`` (``[B, T, I]`` with batch_first, or unbatched
    ``[T, I]``) and ``(h_0, c_0)`` of ``[L*D, B, H]`` (unbatched ``[L*D, H]``), zeros if None, and returns
    ``y, (h_n, c_n)`` with y ``[T, B, D*H]``. With embedding, a table ``[V, I]``, the input is int64 tokens ``[T, B]``
    (``[B, T]``, ``[T]``) that pick its rows: the same as ``input=F.embedding(tokens, embedding)``, but faster where
    V < T*B, because each row of the table is projected once. float32, float64, and bfloat16 and float16 computed in
    float32; on the CPU.

    Raises:
        ValueError: an input of other than 2 or 3 dimensions, or of another dtype than the weights.
        RuntimeError: sizes, dtypes of hx or devices that do not fit; T = 0.
        NotImplementedError: PackedSequence, CUDA tensors where there are no CUDA kernels.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__("LSTM", *args, **kwargs)

    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    check_forward_args = nn.LSTM.check_forward_args  # type: ignore[assignment]
    permute_hidden = nn.LSTM.permute_hidden  # type: ignore[assignment]

    def forward(
        self, input: Tensor, hx: Sequence[Tensor] | None = None, *, embedding: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        batched = self._is_batched(input, embedding)
        if hx is not None and (hx[0].dim(), hx[1].dim()) != ((3, 3) if batched else (2, 2)):
            kind = "batched 3-D" if batched else "unbatched 2-D"
            raise RuntimeError(
                f"For {kind} input, hx and cx should also be {3 if batched else 2}-D "
                f"but got ({hx[0].dim()}-D, {hx[1].dim()}-D) tensors"
            )
        if not batched:
            input = input.unsqueeze(0 if self.batch_first else 1)
            hx = None if hx is None else tuple(h.unsqueeze(1) for h in hx)
        y, h_n, c_n = self._run("lstm", input, hx, hx, embedding)
        if batched:
            return y, (h_n, c_n)
        return y.squeeze(0 if self.batch_first else 1), (h_n.squeeze(1), c_n.squeeze(1))


class GRU(_Layers):
    """A drop-in for :class:`torch.nn.GRU`; see :class:`LSTM` for shapes, dtypes and errors. One state, h."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        super().__init__("GRU", *args, **kwargs)

    def forward(
        self, input: Tensor, hx: Tensor | None = None, *, embedding: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return self._run_one_state("gru", input, hx, embedding)


class RNN(_Layers):
    """A drop-in for :class:`torch.nn.RNN`; see :class:`LSTM` for shapes, dtypes and errors. One state, h.

    nonlinearity, the fourth argument, is "tanh" or "relu".
    """

    _wrong_dimensions = "{}: Expected input to be 2D or 3D, got {}D tensor instead"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        if len(args) > 3:
            self.nonlinearity = args[3]
            args = (*args[:3], *args[4:])
        else:
            self.nonlinearity = kwargs.pop("nonlinearity", "tanh")
        if self.nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity '{self.nonlinearity}'. Select from 'tanh' or 'relu'.")
        super().__init__(f"RNN_{self.nonlinearity.upper()}", *args, **kwargs)

    def forward(
        self, input: Tensor, hx: Tensor | None = None, *, embedding: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return self._run_one_state(f"rnn_{self.nonlinearity}", input, hx, embedding)
