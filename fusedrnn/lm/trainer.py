"""Training with a carried hidden state: truncated back-propagation through time, batch after batch."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, asdict, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .data import Corpus
from .distributed import ALONE, Processes
from .errors import DivergedError, StateError
from .metrics import EpochMetrics
from .model import Output, StatefulModel, evaluating
from .optimization import make_optimizer, make_schedule, scaled_rates
from .recipe import Recipe
from .regularization import activation_regularization, temporal_activation_regularization
from .windows import Windows

_PROSE = ("source", "measured", "target")  # fields of a recipe that training does not read
_STATE = (
    *("recipe", "vocabulary", "text", "model", "optimizer", "schedule", "hidden", "generators"),
    *("steps", "position", "loss_sum", "seconds", "history"),
)


class Trainer:
    """Trains a model on a corpus, as a recipe says.

    Args:
        model: of any dtype.
        corpus: batches, contiguous where the recipe is stateful (see :func:`~fusedrnn.lm.data.make_corpus`).
        recipe: optimizer, schedule and penalties are taken from it.
        processes: those that train this model together, each with a trainer of its own on the same corpus.

    Attributes:
        steps: how often the optimizer has stepped.
        position: batches of the training part that the current epoch has read.
        windows: what is read in each epoch.
        history: of the epochs that are over, by :meth:`epochs`.

    Raises:
        RecipeError: the rows of a batch cannot be split among the processes.
    """

    def __init__(self, model: StatefulModel, corpus: Corpus, recipe: Recipe, processes: Processes = ALONE) -> None:
        processes.require_rows(len(corpus.train[0][0]))
        self.model = model
        self.corpus = corpus
        self.recipe = recipe
        self.processes = processes
        self._averaging = processes.wrap(model)
        self.steps = 0
        self.position = 0
        self.history: list[EpochMetrics] = []
        self._loss_sum = 0.0  # of the batches that the current epoch has read
        self._seconds = 0.0  # that their training took
        self.optimizer = make_optimizer(model.parameters(), recipe)
        seed = int(torch.randint(2**31, ())) if recipe.random_lengths and processes.first else 0
        self.windows = Windows(corpus.train, recipe, int(processes.sum(seed)[0]))
        self.schedule = make_schedule(self.optimizer, recipe, lambda epoch: self.windows.start(epoch))

    def step(self, inputs: Tensor, targets: Tensor) -> float:
        """Trains on one batch, which continues the last one where the recipe is stateful.

        Args:
            inputs: int64 ``[B, T]``, of several processes the rows of this one.
            targets: int64 ``[B, K]``, the tokens that follow the last K inputs, K from 1 to T.

        Returns:
            the cross-entropy, in nats per target of all processes.

        Raises:
            DivergedError: the loss is not finite. The parameters are those of before the call.
        """
        options: dict[str, Any] = {"targets": targets} if self.recipe.teacher_forcing else {}
        if self.recipe.backprop_length is not None:
            options["back"] = self.recipe.backprop_length
        output = self._read(inputs, **options)
        logits = output.logits[:, -targets.shape[1] :]
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        objective = loss
        if self.recipe.ar:
            objective = objective + activation_regularization(output.dropped, self.recipe.ar)
        if self.recipe.tar:
            objective = objective + temporal_activation_regularization(output.raw, self.recipe.tar)
        # Of all processes, so that they agree on whether to go on.
        mean, mean_objective = self.processes.mean(loss.item(), objective.item())
        _require_finite(mean_objective, f"training loss at step {self.steps + 1}")
        self.optimizer.zero_grad()
        objective.backward()
        if self.recipe.clip_value is not None:
            nn.utils.clip_grad_value_(self.model.parameters(), self.recipe.clip_value)
        if self.recipe.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        scale = inputs.shape[1] / self.windows.length if self.recipe.random_lengths else 1.0
        with scaled_rates(self.optimizer, scale):
            self.optimizer.step()
        self.schedule.step()
        self.model.detach()
        self.steps += 1
        return mean

    def _read(self, inputs: Tensor, **options: Any) -> Output:
        if not self.recipe.stateful:
            self.model.reset()
        return self._averaging(inputs, **options) if self.model.training else self.model(inputs)

    def train_epoch(self, on_step: Callable[[int, float], None] | None = None) -> float:
        """Reads the training part once, from a zero state; or its rest, where an epoch was begun before.

        Args:
            on_step: called after each batch with its number of tokens and its loss; may call :meth:`state_dict`.

        Returns:
            the mean of the losses of all batches, weighed by their lengths where these are random.

        Raises:
            DivergedError: see :meth:`step`.
        """
        self.model.train()
        if self.position == 0:
            self.model.reset()
            self._loss_sum = self._seconds = 0.0
        epoch = len(self.history)
        batches, length = self.windows.of_epoch(epoch), self.windows.length_of_epoch(epoch)
        while self.position < len(batches):
            start = time.perf_counter()
            batch = batches[self.position]
            loss = self.step(*self.processes.part(batch, self._device))
            self.position += 1
            self._loss_sum += loss * (batch[0].shape[1] / length)
            self._seconds += time.perf_counter() - start
            if on_step:
                on_step(batch[0].numel(), loss)
        self.position = 0
        return self._loss_sum / len(self.corpus.train)

    def validate(self) -> tuple[float, float]:
        """Reads the validation part once, from a zero state.

        Returns:
            the mean cross-entropy in nats per target, and the fraction of targets that were the most likely tokens.

        Raises:
            DivergedError: the loss is not finite.
        """
        loss, hits, tokens = 0.0, 0.0, 0.0
        self.model.reset()
        with evaluating(self.model):
            for batch in self.corpus.valid:
                inputs, targets = self.processes.part(batch, self._device)
                if not len(inputs):
                    continue  # a last batch of fewer rows than processes
                logits = self._read(inputs).logits[:, -targets.shape[1] :].flatten(0, 1)
                loss += F.cross_entropy(logits, targets.flatten(), reduction="sum").item()
                hits += (logits.argmax(-1) == targets.flatten()).sum().item()
                tokens += targets.numel()
        self.model.reset()
        loss, hits, tokens = self.processes.sum(loss, hits, tokens)
        _require_finite(loss, f"validation loss after step {self.steps}")
        return loss / tokens, hits / tokens

    def epochs(self, on_step: Callable[[int, float], None] | None = None) -> Iterator[EpochMetrics]:
        """Trains and validates, epoch by epoch, from where the trainer is to the recipe's last epoch.

        Raises:
            DivergedError: see :meth:`step`.
        """
        while len(self.history) < self.recipe.epochs:
            tokens = self.windows.tokens(len(self.history))
            train_loss = self.train_epoch(on_step)
            start = time.perf_counter()
            valid_loss, accuracy = self.validate()
            seconds = self._seconds + time.perf_counter() - start
            epoch = len(self.history) + 1
            self.history.append(EpochMetrics(epoch, train_loss, valid_loss, accuracy, seconds, tokens / self._seconds))
            yield self.history[-1]

    def state_dict(self) -> dict[str, Any]:
        """All that decides how the training goes on, in plain values and tensors, which are not copied.

        Between two steps or epochs, that is in ``on_step`` or in the body of a loop over :meth:`epochs`, it is
        complete: a trainer that loads it ends with the same bits as this one. Of several processes all must call this,
        and get what belongs to all. Its keys:

        - ``recipe``: a dict of its fields; ``vocabulary``: the tokens; ``text``: :meth:`Corpus.digest`. They are
          there to be compared.
        - ``model``, ``optimizer``, ``schedule``: their own state_dicts.
        - ``hidden``: the model's carried state, a list of tensors, or None. ``earlier``: the same of the tokens that
          the next step reads again, ``[N, B]``.
        - ``generators``: states of torch's global generators, by device: the CPU's, and that of the model's device;
          those of a process but the first are marked with its number.
        - ``steps``, ``position``: as the attributes of these names.
        - ``lengths``: the seed of random lengths, 0 for none.
        - ``loss_sum``, ``seconds``: of the batches that the current epoch has read.
        - ``history``: for each epoch that is over, a dict of :class:`EpochMetrics`.
        """
        earlier = self.model.earlier
        return {
            "recipe": asdict(self.recipe),
            "vocabulary": list(self.corpus.vocabulary.tokens),
            "text": self._text,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "hidden": self.processes.join_rows(self.model.state),
            "earlier": self.processes.join_rows(None if earlier is None else (earlier.t().contiguous(),)),
            "generators": self.processes.join({str(g.device): g.get_state() for g in self._generators()}),
            "lengths": self.windows.seed,
            "steps": self.steps,
            "position": self.position,
            "loss_sum": self._loss_sum,
            "seconds": self._seconds,
            "history": [asdict(metrics) for metrics in self.history],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from where another trainer was; what is loaded is copied.

        The backend and the number of processes may be others: they compute the same, but for the last bits and the
        random numbers of dropout. A device whose generator the state lacks keeps the generator that it has.

        Raises:
            StateError: the state is none, or of another recipe, text or model. The trainer stays as it was.
        """
        self._require_match(state)
        try:
            self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        except ValueError as error:
            raise StateError(f"the state is of another optimizer: {error}") from error
        self.schedule.load_state_dict(copy.deepcopy(state["schedule"]))
        self.model.load_state_dict(state["model"])
        self.model.state = self.processes.split_rows(state["hidden"], self._device)
        earlier = self.processes.split_rows(state.get("earlier"), self._device)  # older states have none
        self.model.earlier = None if earlier is None else earlier[0].t()
        for generator in self._generators():
            found = self.processes.find(state["generators"], str(generator.device))
            if found is not None:
                generator.set_state(found)
        self.windows = Windows(self.corpus.train, self.recipe, state.get("lengths", 0))
        self.steps, self.position = state["steps"], state["position"]
        self._loss_sum, self._seconds = state["loss_sum"], state["seconds"]
        self.history = [EpochMetrics(**metrics) for metrics in state["history"]]

    def _require_match(self, state: Mapping[str, Any]) -> None:
        if lacks := [key for key in _STATE if key not in state]:
            raise StateError(f"no state of a trainer: it lacks {', '.join(lacks)}")
        defaults = {field.name: field.default for field in fields(Recipe) if field.default is not MISSING}
        mine, given = asdict(self.recipe), defaults | state["recipe"]  # fields are newer than some states
        for field in sorted(mine.keys() | given.keys()):
            there, here = given.get(field), mine.get(field)
            if field not in _PROSE and there != here:
                raise StateError(f"the state is of another recipe: {field} is {there!r} there, {here!r} here")
        if tuple(state["vocabulary"]) != self.corpus.vocabulary.tokens:
            raise StateError(
                f"the state's vocabulary of {len(state['vocabulary'])} tokens is not that of the text here, of "
                f"{len(self.corpus.vocabulary)} tokens"
            )
        if state["text"] != self._text:
            raise StateError("the text here is not the one that the state was trained on, or is cut in another way")
        mine, given = _kinds(self.model.state_dict()), _kinds(state["model"])
        for name in sorted(mine.keys() | given.keys()):
            there, here = given.get(name, "missing"), mine.get(name, "missing")
            if there != here:
                raise StateError(f"the state is of another model: {name} is {there} there, {here} here")

    def require_finite_state(self) -> None:
        """Says whether the state is worth keeping: a loss shows only at the next step what the last one spoiled.

        Raises:
            DivergedError: a parameter, its statistics in the optimizer or the carried state is not finite.
        """
        tensors = [(f"hidden state {index}", h) for index, h in enumerate(self.model.state or ())]
        for name, parameter in self.model.named_parameters():
            tensors.append((name, parameter))
            statistics = self.optimizer.state.get(parameter, {})
            tensors += [(f"{key} of {name}", torch.as_tensor(value)) for key, value in statistics.items()]
        for name, tensor in tensors:
            if not tensor.isfinite().all():
                raise DivergedError(f"{name} is no longer finite after step {self.steps}: {_REMEDY}")

    @cached_property
    def _text(self) -> str:
        return self.corpus.digest()

    def _generators(self) -> list[torch.Generator]:
        """Torch's global generators, of the CPU and of the model's device."""
        if self._device.type == "cpu":
            return [torch.default_generator]
        others = torch.get_device_module(self._device).default_generators
        return [torch.default_generator, others[self._device.index]]

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


def _kinds(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for name, t in tensors.items()}


_REMEDY = "train with a lower learning rate, or clip the gradient"


def _require_finite(loss: float, name: str) -> None:
    if not math.isfinite(loss):
        raise DivergedError(f"the {name} is {loss}: {_REMEDY}")
