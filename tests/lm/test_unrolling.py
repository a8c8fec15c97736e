from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusedrnn.lm import RECIPES, LanguageModel
from fusedrnn.lm.model import cell_step

V, H = 11, 6
BACKENDS = ("fused", "nn", "reference")
CELLS = ("lstm", "gru", "rnn_tanh", "rnn_relu")
UNROLLS = ("layer", "cell", "literal")

each_backend = pytest.mark.parametrize("backend", BACKENDS)


def make(cell: Any = "rnn_relu", layers: int = 2, **options: Any) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(V, H, H, layers, cell, **options).double()


def text(rows: int, steps: int) -> Tensor:
    return torch.randint(V, (rows, steps), generator=torch.Generator().manual_seed(1))


class BookModel(nn.Module):
    """The equations of the first model of Howard and Gugger's chapter 12, with one linear layer for all three words."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, H)
        self.hidden = nn.Linear(H, H)
        self.decoder = nn.Linear(H, V)

    def forward(self, words: Tensor) -> Tensor:
        e1, e2, e3 = self.embedding(words).unbind(1)
        h = F.relu(self.hidden(e1))
        h = F.relu(self.hidden(h + e2))
        h = F.relu(self.hidden(h + e3))
        return self.decoder(h)


@each_backend
@pytest.mark.parametrize("unroll", UNROLLS)
def test_a_shared_matrix_on_three_words_is_the_books_model(unroll: Any, backend: Any) -> None:
    words = text(5, 3)
    model, book = make(layers=1, shared_matrix=True, unroll=unroll, backend=backend), BookModel().double()
    book.embedding.load_state_dict(model.embedding.state_dict())
    book.decoder.load_state_dict(model.decoder.state_dict())
    book.hidden.load_state_dict({"weight": model.rnn.weight_ih_l0, "bias": model.rnn.bias_ih_l0})
    got, expected = model(words).logits[:, -1], book(words)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)
    for logits in (got, expected):
        F.cross_entropy(logits, words[:, 0]).backward()
    pairs = [
        (model.embedding.weight, book.embedding.weight),
        (model.rnn.weight_ih_l0, book.hidden.weight),
        (model.rnn.bias_ih_l0, book.hidden.bias),
        (model.decoder.weight, book.decoder.weight),
        (model.decoder.bias, book.decoder.bias),
    ]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-11, atol=1e-14)


def test_the_written_out_recipe_and_the_looped_one_give_identical_outputs() -> None:
    outputs = []
    for name in ("hn-literal", "hn-loop"):
        torch.manual_seed(0)
        outputs.append(RECIPES[name].make_model(30)(torch.arange(30).view(10, 3)).logits)
    assert torch.equal(*outputs)


@each_backend
@pytest.mark.parametrize("rows, steps", [(3, 1), (3, 2), (3, 3), (3, 4), (3, 7), (2 * V, 4)])
@pytest.mark.parametrize("cell", CELLS)
def test_every_way_to_unroll_gives_the_layers_results_state_and_gradients(
    cell: Any, rows: int, steps: int, backend: Any
) -> None:
    results = []
    for unroll in UNROLLS:
        model = make(cell, unroll=unroll, backend=backend)
        model(text(rows, 2))  # so that the state is not zero
        output = model(text(rows, steps))
        F.cross_entropy(output.logits.flatten(0, 1), text(rows, steps).flatten()).backward()
        assert model.state is not None
        results.append([output.logits, *model.state, *(p.grad for p in model.parameters())])
    for got in results[1:]:
        for a, b in zip(got, results[0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)
    assert all(torch.equal(a, b) for a, b in zip(results[1], results[2], strict=True))


@each_backend
@pytest.mark.parametrize("cell", CELLS)
def test_a_loop_calls_the_cell_once_a_step_and_layer(cell: Any, backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    step = cell_step(backend, cell)

    def counted(x: Tensor, *arguments: Any, **options: Any) -> Any:
        calls.append(x.shape)
        return step(x, *arguments, **options)

    monkeypatch.setattr("fusedrnn.lm.model.cell_step", lambda *names: counted)
    make(cell, unroll="cell", backend=backend)(text(3, 5))
    assert calls == [(3, H)] * 10
    calls.clear()
    make(cell, unroll="cell", backend=backend)(text(2 * V, 5))  # of tokens, where the table is shorter than a step
    assert calls == [(2 * V,) if backend == "fused" else (2 * V, H)] * 5 + [(2 * V, H)] * 5


def test_cells_of_another_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"cell: expected one of .*'sru'"):
        cell_step("fused", "sru")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"backend: expected one of .*'cudnn'"):
        cell_step("cudnn", "gru")  # type: ignore[arg-type]


@each_backend
def test_a_shared_matrix_is_one_parameter_and_its_second_bias_stays_zero(backend: Any) -> None:
    model = make("rnn_tanh", shared_matrix=True, backend=backend)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == [
        "embedding.weight",
        *(f"rnn.{name}_ih_l{layer}" for layer in (0, 1) for name in ("weight", "bias")),
        "decoder.weight",
        "decoder.bias",
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(text(2, 4)).logits.sum().backward()
    optimizer.step()
    for layer in (0, 1):
        assert getattr(model.rnn, f"weight_hh_l{layer}") is getattr(model.rnn, f"weight_ih_l{layer}")
        assert not getattr(model.rnn, f"bias_hh_l{layer}").any()


@each_backend
def test_a_shared_matrix_survives_copies_pickling_checkpoints_and_dtypes(backend: Any) -> None:
    model, words = make(shared_matrix=True, backend=backend), text(2, 4)
    expected = model(words).logits
    loaded = make(shared_matrix=True, backend=backend)
    loaded.load_state_dict(model.state_dict())
    for other in (loaded, copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded)), copy.deepcopy(loaded).float()):
        other.reset()
        assert other.rnn.weight_hh_l1 is other.rnn.weight_ih_l1
        torch.testing.assert_close(other(words).logits.double(), expected, rtol=1e-4, atol=1e-5)


def test_an_orthogonal_matrix_that_is_shared_serves_both_sides() -> None:
    weight = make(shared_matrix=True, recurrent_init="orthogonal").rnn.weight_ih_l0
    torch.testing.assert_close(weight @ weight.t(), torch.eye(H, dtype=torch.float64), rtol=0, atol=1e-6)
