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
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from .. import network
from ..ops import Masks
from ..unfused import GRU_RESET_BEFORE
from .scripting import NotScriptable


class _Layers(NotScriptable, nn.RNNBase):
    """What the three share: the forward pass, once the states are a tuple."""

    _wrong_dimensions = "{}: Expected input to be 2D or 3D, got {}D instead"
    weight_drop = 0.0  # of modules pickled by an earlier version, or made from nn.* ones

    def __init__(self, *args: Any, recompute: bool = False, weight_drop: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.recompute = recompute
        self.weight_drop = weight_drop
        if not 0 <= weight_drop <= 1:
            raise ValueError(f"weight_drop: expected a probability, from 0 to 1, got {weight_drop}")

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("recompute", False)  # pickled by an earlier version

    def extra_repr(self) -> str:
        return super().extra_repr() + (f", weight_drop={self.weight_drop}" if self.weight_drop else "")

    def flatten_parameters(self) -> None:
        """Does nothing: the kernels take the parameters where they are. Kept for code written for nn.*."""

    def _weights(self) -> Sequence[Tensor]:
        # Looked up at every call, so that parametrizations and replaced parameters are seen.
        names, parameters = self._flat_weights_names, self._parameters
        try:
            return itemgetter(*names)(parameters)  # the lookup of a module's attribute is slow
        except KeyError:
            return [getattr(self, name) for name in names]

    def _dropped(self, weights: Sequence[Tensor]) -> Sequence[Tensor]:
        """The weights of one call in training: copies of the recurrent ones with zeros in the place of some."""
        return [
            F.dropout(weight, self.weight_drop) if name.startswith("weight_hh") else weight
            for name, weight in zip(self._flat_weights_names, weights, strict=True)
        ]

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

    def _forward(
        self,
        cell: str,
        input: Tensor | PackedSequence,
        hx: Sequence[Tensor] | None,
        embedding: Tensor | None,
        resets: Tensor | PackedSequence | None,
        lengths: Tensor | None,
        detach_every: int | None,
        return_states: bool = False,
    ) -> tuple[Any, ...]:
        """y, the final states and, with return_states, c of every step: in the form that the input has."""
        if isinstance(input, PackedSequence):
            return self._forward_packed(cell, input, hx, embedding, resets, lengths, detach_every, return_states)
        if isinstance(resets, PackedSequence):
            raise RuntimeError("Expected resets as a tensor, since the input is one, got a PackedSequence")
        batched = self._is_batched(input, embedding)
        if hx is not None:
            self._check_dimensions(hx, batched)
        if batched:
            masks = network.masks_of(None, lengths, resets, detach_every, self.bidirectional)
            return self._run(cell, input, hx, embedding, masks, return_states)
        if lengths is not None:
            raise RuntimeError("lengths are those of a batch; got unbatched input")
        if isinstance(resets, Tensor) and resets.shape != input.shape[:1]:
            raise RuntimeError(f"Expected resets of shape {list(input.shape[:1])}, got {list(resets.shape)}")
        batch = 0 if self.batch_first else 1
        masks = network.masks_of(
            None, None, None if resets is None else resets.unsqueeze(batch), detach_every, self.bidirectional
        )
        states = None if hx is None else tuple(h.unsqueeze(1) for h in hx)
        y, *rest = self._run(cell, input.unsqueeze(batch), states, embedding, masks, return_states)
        c = [rest.pop().squeeze(batch)] if return_states else []
        return (y.squeeze(batch), *(s.squeeze(1) for s in rest), *c)

    def _forward_packed(
        self,
        cell: str,
        input: PackedSequence,
        hx: Sequence[Tensor] | None,
        embedding: Tensor | None,
        resets: Tensor | PackedSequence | None,
        lengths: Tensor | None,
        detach_every: int | None,
        return_states: bool,
    ) -> tuple[Any, ...]:
        data, batch_sizes, *order = input
        to_sorted, to_unsorted = order
        if lengths is not None:
            raise RuntimeError("A PackedSequence has lengths of its own; expected lengths=None")
        if resets is not None:
            # A graph cannot look at values.
            if not isinstance(resets, PackedSequence) or not (is_compiling() or _packed_alike(resets, input)):
                raise RuntimeError(
                    "Expected resets as a PackedSequence with the batch_sizes and the order of the input"
                )
            resets = resets.data
        masks = network.masks_of(batch_sizes, None, resets, detach_every, self.bidirectional)
        if hx is not None:
            self._check_dimensions(hx, True)
            if to_sorted is not None:
                hx = tuple(h.index_select(1, to_sorted) for h in hx)
        y, *rest = self._run(cell, data, hx, embedding, masks, return_states)
        # torch.compile loses what _replace keeps.
        c = [PackedSequence(rest.pop(), batch_sizes, *order)] if return_states else []
        if to_unsorted is not None:
            rest = [s.index_select(1, to_unsorted) for s in rest]
        return (PackedSequence(y, batch_sizes, *order), *rest, *c)

    def _run(
        self,
        cell: str,
        input: Tensor,
        states: Sequence[Tensor] | None,
        embedding: Tensor | None,
        masks: Masks,
        return_states: bool,
    ) -> tuple[Tensor, ...]:
        """The layers over batched input. What does not fit is refused further down, and only then looked for."""
        weights, dropout = self._weights(), 0.0
        if self.training:
            dropout = self.dropout
            if self.weight_drop:
                weights = self._dropped(weights)
        try:
            return network.run_network(
                cell,
                input,
                states,
                weights,
                embedding,
                self.num_layers,
                self.bidirectional,
                self.batch_first,
                dropout,
                self.recompute,
                masks,
                return_states,
            )
        except RuntimeError:  # NotImplementedError is one
            if not is_compiling():
                self._check(input, states, embedding, masks.batch_sizes)
            raise

    def _check(
        self, input: Tensor, hx: Sequence[Tensor] | None, embedding: Tensor | None, batch_sizes: Tensor | None
    ) -> None:
        if embedding is not None:
            self.check_input(embedding, None)
            # The checks of states ask the input for its batch size alone.
            input = embedding.new_empty((*input.shape, self.input_size), device="meta")
        if hx is not None:
            self.check_forward_args(input, hx if self.mode == "LSTM" else hx[0], batch_sizes)  # type: ignore[arg-type]
        elif embedding is None:
            self.check_input(input, batch_sizes)

    def _check_dimensions(self, hx: Sequence[Tensor], batched: bool) -> None:
        dims = 3 if batched else 2
        for h in hx[:2]:
            if h.dim() != dims:
                break
        else:
            return
        kind = f"{'batched' if batched else 'unbatched'} {dims}-D"
        if self.mode != "LSTM":
            raise RuntimeError(f"For {kind} input, hx should also be {dims}-D but got {hx[0].dim()}-D tensor")
        raise RuntimeError(
            f"For {kind} input, hx and cx should also be {dims}-D but got ({hx[0].dim()}-D, {hx[1].dim()}-D) tensors"
        )


def _packed_alike(a: PackedSequence, b: PackedSequence) -> bool:
    """Whether rows of the two that stand in the same place are of the same entry and step."""
    if not torch.equal(a.batch_sizes, b.batch_sizes):
        return False
    if a.sorted_indices is None and b.sorted_indices is None:
        return True
    as_they_are = torch.arange(int(a.batch_sizes[0]), device=a.data.device)
    first, second = (as_they_are if p.sorted_indices is None else p.sorted_indices for p in (a, b))
    return torch.equal(first, second)


class LSTM(_Layers):
    """A drop-in for :class:`torch.nn.LSTM`: same constructor, parameters, initialisation, results and errors.

    Args:
        input_size: I, features of the input.
        hidden_size: H, features of each state.
        num_layers, bias, batch_first, dropout, bidirectional, device, dtype: as in nn.LSTM.
        proj_size: P, 0 for none: h is projected to P units, with parameters weight_hr_l*, as in nn.LSTM; c keeps H. It
            has no kernel, but loops over the steps in plain PyTorch, as nn.LSTM does; whatever else is asked for, too.
        recompute: keep no gates for backward, which computes them again: less memory, more time.
        weight_drop: the probability of zeroing each element of the recurrent matrices ``[4H, H]`` while training, and
            of scaling the others by 1 / (1 - weight_drop): DropConnect (Wan et al. 2013) as in Merity et al. (2017),
            section 2. One draw holds for all steps and rows of a call; parameters and state_dict stay as they are.

    ``forward(input, hx=None, *, embedding=None)`` takes ``[T, B, I]`` (``[B, T, I]`` with batch_first, or unbatched
    ``[T, I]``) and ``(h_0, c_0)`` of ``[L*D, B, H]`` (unbatched ``[L*D, H]``), zeros if None, and returns
    ``y, (h_n, c_n)`` with y ``[T, B, D*H]``. With embedding, a table ``[V, I]``, the input is int64 tokens ``[T, B]``
    (``[B, T]``, ``[T]``) that pick its rows: the same as ``input=F.embedding(tokens, embedding)``, but faster where
    V < T*B, because each row of the table is projected once. float32, float64, and bfloat16 and float16 computed in
    float32; on the CPU and CUDA. A PackedSequence, sorted or not, is served as by nn.LSTM.

    Beyond nn.LSTM, forward takes, by name:

    - ``resets``, bool ``[T, B]`` (``[B, T]``, ``[T]``; a PackedSequence where the input is one): where set, the states
      of all layers are zeroed before that step, in the order in which a direction runs, and no gradient passes;
    - ``lengths``, integers ``[B]`` from 0 to T: each entry of padded input ends after so many steps. y is zero from
      there on, h_n and c_n are those of the last step, the reversed direction begins with it. On the CPU, what
      is over costs no time. On a GPU, a length outside of 0 to T is an error of the device, as in F.embedding;
    - ``detach_every``: no gradient passes from step t to step t - 1 where this divides t: truncated backpropagation
      through time in one call. Not with bidirectional;
    - ``return_states=True``: also returns c of every step of the last layer, ``[T, B, D*H]`` in the form of y:
      ``y, (h_n, c_n), c``.

    Raises:
        ValueError: an input of other than 2 or 3 dimensions, or of another dtype than the weights; detach_every below 1
            or with bidirectional; weight_drop outside of 0 to 1.
        TypeError: lengths or resets that are no tensors, a detach_every that is no integer.
        RuntimeError: sizes, dtypes of hx or devices that do not fit; T = 0; lengths or resets that do not fit.
        NotImplementedError: CUDA tensors where there are no CUDA kernels.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__("LSTM", *args, **kwargs)

    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    check_forward_args = nn.LSTM.check_forward_args  # type: ignore[assignment]
    permute_hidden = nn.LSTM.permute_hidden  # type: ignore[assignment]

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Sequence[Tensor] | None = None,
        *,
        embedding: Tensor | None = None,
        resets: Tensor | PackedSequence | None = None,
        lengths: Tensor | None = None,
        detach_every: int | None = None,
        return_states: bool = False,
    ) -> tuple[Any, ...]:
        y, h_n, c_n, *c = self._forward("lstm", input, hx, embedding, resets, lengths, detach_every, return_states)
        return y, (h_n, c_n), *c


class GRU(_Layers):
    """A drop-in for :class:`torch.nn.GRU`; see :class:`LSTM` for shapes, dtypes and errors.

    One state, h, and so no return_states.

    reset_after, by name: False for the reset gate before the matrix product, n = tanh(W x + b + U (r * h) + b'), as Cho
    et al. (2014) print it, where nn.GRU has n = tanh(W x + b + r * (U h + b')). Parameters have the same names and
    shapes, and other values for the same function. It has no kernel, but loops over the steps in plain PyTorch.
    """

    reset_after = True  # of modules pickled by an earlier version, or made from nn.* ones

    def __init__(self, *args: Any, reset_after: bool = True, **kwargs: Any) -> None:
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        super().__init__("GRU", *args, **kwargs)
        self.reset_after = reset_after

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.reset_after else ", reset_after=False")

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        embedding: Tensor | None = None,
        resets: Tensor | PackedSequence | None = None,
        lengths: Tensor | None = None,
        detach_every: int | None = None,
    ) -> tuple[Any, Tensor]:
        states = None if hx is None else (hx,)
        cell = "gru" if self.reset_after else GRU_RESET_BEFORE
        y, h_n = self._forward(cell, input, states, embedding, resets, lengths, detach_every)
        return y, h_n


class RNN(_Layers):
    """A drop-in for :class:`torch.nn.RNN`; see :class:`LSTM` for shapes, dtypes and errors.

    One state, h, and so no return_states.

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
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        embedding: Tensor | None = None,
        resets: Tensor | PackedSequence | None = None,
        lengths: Tensor | None = None,
        detach_every: int | None = None,
    ) -> tuple[Any, Tensor]:
        states = None if hx is None else (hx,)
        y, h_n = self._forward(f"rnn_{self.nonlinearity}", input, states, embedding, resets, lengths, detach_every)
        return y, h_n
