from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusedrnn.lm import LanguageModel
from fusedrnn.lm.model import evaluating

V, E, H, LAYERS = 11, 6, 6, 2
CELLS = ("lstm", "gru", "rnn_tanh", "rnn_relu")
BACKENDS = ("fused", "nn", "reference")

each_cell = pytest.mark.parametrize("cell", CELLS)
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def make(cell: Any = "gru", *, seed: int = 0, **options: Any) -> LanguageModel:
    torch.manual_seed(seed)
    return LanguageModel(V, E, H, LAYERS, cell, **options).double()


def text(rows: int = 3, steps: int = 8, seed: int = 1) -> Tensor:
    return torch.randint(V, (rows, steps), generator=torch.Generator().manual_seed(seed))


def loss_of(model: LanguageModel, tokens: Tensor) -> Tensor:
    return F.cross_entropy(model(tokens).logits.flatten(0, 1), tokens.roll(-1, 1).flatten())


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@each_backend
@each_cell
def test_outputs_have_the_documented_shapes(cell: str, backend: str) -> None:
    model = make(cell, backend=backend, dropout=0.5)
    output = model(text(3, 8))
    assert output.logits.shape == (3, 8, V)
    assert output.raw.shape == output.dropped.shape == (3, 8, H)
    assert model.state is not None
    assert [s.shape for s in model.state] == [(LAYERS, 3, H)] * (2 if cell == "lstm" else 1)


@each_backend
@each_cell
def test_chunks_with_a_carried_state_equal_the_whole_text_at_once(cell: str, backend: str) -> None:
    model, tokens = make(cell, backend=backend), text(3, 9)
    whole = model(tokens)
    model.reset()
    parts = [model(chunk) for chunk in tokens.split([4, 1, 4], 1)]
    for got, expected in zip(map(torch.cat, zip(*parts, strict=True), (1, 1, 1)), whole, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)


@each_backend
@each_cell
def test_gradients_are_those_of_the_full_unroll_inside_the_window_and_zero_across_its_border(
    cell: str, backend: str
) -> None:
    tokens = text(3, 10)
    before, inside = tokens.split(5, 1)
    truncated = make(cell, backend=backend)
    truncated(before)
    truncated.detach()
    loss_of(truncated, inside).backward()

    # A full unroll in which the window has parameters of its own tells the two shares of the gradient apart.
    first = make(cell, backend=backend)
    second = copy.deepcopy(first)
    first(before)
    second.state = first.state
    loss_of(second, inside).backward()
    shares = {name: (p.grad, second.get_parameter(name).grad) for name, p in first.named_parameters()}
    for name, gradient in gradients(truncated).items():
        torch.testing.assert_close(gradient, shares[name][1], rtol=1e-11, atol=1e-14)
    assert all(
        across is not None and across.abs().max() > 1e-6 for name, (across, _) in shares.items() if "rnn" in name
    )

    full = make(cell, backend=backend)
    full(before)
    loss_of(full, inside).backward()
    for name, gradient in gradients(full).items():
        across, within = shares[name]
        torch.testing.assert_close(gradient, within if across is None else across + within, rtol=1e-11, atol=1e-14)


def test_no_gradient_reaches_a_token_that_was_read_before_the_border() -> None:
    for detached in (True, False):
        model = make()
        model(torch.full((2, 4), 7))
        if detached:
            model.detach()
        loss_of(model, torch.randint(5, (2, 4))).backward()
        assert model.embedding.weight.grad is not None
        assert bool((model.embedding.weight.grad[7] == 0).all()) is detached


def test_detach_keeps_the_state() -> None:
    model = make("lstm")
    model(text())
    assert model.state is not None
    kept = [s.detach().clone() for s in model.state]
    model.detach()
    assert all(torch.equal(a, b) and a.grad_fn is None for a, b in zip(model.state, kept, strict=True))


def test_a_gru_with_the_reset_before_its_product_is_served_in_every_way() -> None:
    results = []
    for backend, unroll in (("reference", "layer"), ("reference", "cell"), ("fused", "layer"), ("fused", "literal")):
        model = make("gru_reset_before", backend=backend, unroll=unroll)
        losses = [loss_of(model, text(seed=seed)) for seed in (1, 2)]
        sum(losses).backward()
        results.append([*losses, *gradients(model).values()])
    for others in results[1:]:
        for a, b in zip(others, results[0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)
    assert abs(results[0][0].item() - loss_of(make("gru"), text()).item()) > 1e-6


@each_cell
def test_reset_starts_from_zeros(cell: str) -> None:
    model, tokens = make(cell), text()
    fresh = model(tokens).logits
    assert not torch.allclose(model(tokens).logits, fresh)
    model.reset()
    assert torch.equal(model(tokens).logits, fresh)


@each_cell
def test_another_number_of_rows_starts_from_zeros(cell: str) -> None:
    model = make(cell)
    for rows in (3, 1, 4):
        tokens = text(rows)
        got = model(tokens).logits
        model.reset()
        assert torch.equal(got, model(tokens).logits)


@each_backend
@each_cell
def test_state_follows_the_model_across_dtypes(cell: str, backend: str) -> None:
    model, tokens = make(cell, backend=backend).float(), text()
    model(tokens)
    model.detach()
    double = copy.deepcopy(model).double()
    assert double.state is not None
    assert {s.dtype for s in double.state} == {torch.float64}
    torch.testing.assert_close(double(tokens).logits.float(), model(tokens).logits, rtol=1e-4, atol=1e-5)


def test_state_follows_the_model_across_devices() -> None:
    model = make("lstm")
    model(text())
    model.to("meta")
    assert model.state is not None
    assert {s.device.type for s in model.state} == {"meta"}


def test_state_is_no_part_of_the_state_dict() -> None:
    model = make("lstm")
    before = list(model.state_dict())
    model(text())
    assert list(model.state_dict()) == before
    assert not [name for name, _ in model.named_buffers()]


@each_cell
def test_backends_share_parameters_results_and_dropout_masks(cell: str) -> None:
    tokens = text(4, 7)
    results = []
    for backend in BACKENDS:
        model = make(cell, backend=backend, dropout=0.4, recurrent_init="orthogonal")
        output = model(tokens)
        results.append((model.state_dict(), output))
    (parameters, expected), *others = results
    for got_parameters, got in others:
        assert list(got_parameters) == list(parameters)
        assert all(torch.equal(got_parameters[name], value) for name, value in parameters.items())
        assert torch.equal(got.dropped == 0, expected.dropped == 0)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("locked", [False, True])
@each_cell
def test_backends_drop_alike_between_layers_in_the_input_and_in_the_weights(cell: str, locked: bool) -> None:
    tokens = text(4, 7)
    options = {"dropout": 0.4, "layer_dropout": 0.3, "embedding_dropout": 0.2, "locked": locked}
    for weight_drop in (0.0, 0.5):
        results = []
        for backend in BACKENDS:
            model = make(cell, backend=backend, weight_drop=weight_drop, **options)
            logits = [model(tokens).logits, model(tokens).logits]
            sum(t.sin().sum() for t in logits).backward()
            results.append([*logits, *(p.grad for p in model.parameters())])
        for others in results[1:]:
            for a, b in zip(others, results[0], strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
@each_backend
def test_a_copy_drops_as_its_original_does_and_from_its_own_weights(backend: str, copied: Any) -> None:
    model, tokens = make(backend=backend, weight_drop=0.5), text(4, 7)
    other = copied(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter *= 2
    logits = []
    for one in (other, make(backend=backend, weight_drop=0.5)):
        one.load_state_dict(other.state_dict())
        torch.manual_seed(5)
        logits.append(one(tokens).logits)
    assert torch.equal(*logits)
    torch.manual_seed(5)
    assert not torch.equal(model(tokens).logits, logits[0])
    evaluated = make(backend=backend)
    evaluated.load_state_dict(model.state_dict())
    model.reset()
    assert torch.equal(model.eval()(tokens).logits, evaluated.eval()(tokens).logits)


@each_cell
def test_layers_with_locked_dropout_between_them_are_the_same_layers_in_evaluation(cell: str) -> None:
    tokens = text(4, 7)
    plain = make(cell).eval()
    locked = make(cell, layer_dropout=0.5, locked=True).eval()
    assert list(locked.rnn.state_dict()) != list(plain.rnn.state_dict())
    for _ in range(2):  # the second time from a carried state
        torch.testing.assert_close(locked(tokens).logits, plain(tokens).logits, rtol=1e-12, atol=1e-14)
    for a, b in zip(locked.state, plain.state, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize("cell", [*CELLS, "gru_reset_before"])
def test_gradients_of_detach_every_are_those_of_detached_windows(cell: str, locked: bool) -> None:
    tokens, results = text(4, 7), []
    options = {"layer_dropout": 1e-12, "locked": True} if locked else {}
    for every, windows in ((3, [7]), (None, [3, 3, 1])):
        model = make(cell, detach_every=every, **options)
        logits = []
        for part in tokens.split(windows, 1):
            logits.append(model(part).logits)
            model.detach()
        torch.cat(logits, 1).sin().sum().backward()
        results.append([p.grad for p in model.parameters()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_locked_dropout_of_the_output_holds_for_all_tokens_of_a_call() -> None:
    model = make(dropout=0.5, locked=True)
    first, second = ((model(text(6, 9)).dropped != 0) for _ in range(2))
    assert torch.equal(first, first[:, :1].expand_as(first))
    assert not torch.equal(first, second)


def test_the_decoder_of_a_tied_model_reads_the_embedding_without_dropout() -> None:
    model = make(embedding_dropout=0.99, tied=True)
    output = model(text())
    torch.testing.assert_close(output.logits, output.dropped @ model.embedding.weight.T + model.decoder.bias)


def test_dropout_zeroes_some_activations_and_rescales_the_others() -> None:
    model = make(dropout=0.25)
    output = model(text(20, 20))
    kept = output.dropped != 0
    assert 0.70 < kept.double().mean().item() < 0.80
    torch.testing.assert_close(output.dropped[kept], output.raw[kept] / 0.75)
    torch.testing.assert_close(output.logits, model.decoder(output.dropped))


def test_evaluation_drops_nothing() -> None:
    output = make(dropout=0.9).eval()(text())
    assert torch.equal(output.dropped, output.raw)


def test_tying_shares_the_tensor_and_sums_its_gradients() -> None:
    tied, untied, tokens = make(tied=True), make(), text()
    untied.load_state_dict(tied.state_dict())
    for model in (tied, untied):
        loss_of(model, tokens).backward()
    assert tied.decoder.weight is tied.embedding.weight
    assert tied.embedding.weight.grad is not None
    assert untied.embedding.weight.grad is not None
    assert untied.decoder.weight.grad is not None
    torch.testing.assert_close(
        tied.embedding.weight.grad, untied.embedding.weight.grad + untied.decoder.weight.grad, rtol=1e-12, atol=1e-14
    )


def test_tying_survives_a_change_of_dtype_and_a_copy() -> None:
    model = copy.deepcopy(make(tied=True)).float()
    assert model.decoder.weight is model.embedding.weight
    assert len(list(model.parameters())) == 2 + LAYERS * 4


@each_cell
def test_orthogonal_initialisation_holds_for_every_gate(cell: str) -> None:
    model = make(cell, recurrent_init="orthogonal")
    blocks = [b for name, w in model.rnn.named_parameters() if "weight_hh" in name for b in w.split(H)]
    assert len(blocks) == LAYERS * {"lstm": 4, "gru": 3}.get(cell, 1)
    for block in blocks:
        torch.testing.assert_close(block @ block.t(), torch.eye(H, dtype=torch.float64), rtol=0, atol=1e-6)


@each_cell
def test_identity_initialisation_holds_for_every_gate(cell: str) -> None:
    model = make(cell, recurrent_init="identity")
    blocks = [b for name, w in model.rnn.named_parameters() if "weight_hh" in name for b in w.split(H)]
    assert all(torch.equal(block, torch.eye(H, dtype=torch.float64)) for block in blocks)


def test_run_leaves_the_state_alone() -> None:
    model, tokens = make("lstm"), text()
    model(tokens)
    state = model.state
    expected, _ = model.run(tokens)
    assert model.state is state
    model.reset()
    assert torch.equal(model(tokens).logits, expected.logits)


@each_backend
@each_cell
def test_predict_gives_what_run_gives_of_the_last_step_in_evaluation(cell: str, backend: str) -> None:
    model, tokens = make(cell, backend=backend, dropout=0.5), text(3, 5)
    state = None
    for chunk in (tokens[:, :4], tokens[:, 4:]):
        expected, end = model.eval().run(chunk, state)
        logits, state = model.train().predict(chunk, state)
        torch.testing.assert_close(logits, expected.logits[:, -1])
        torch.testing.assert_close(state, end)
    assert model.state is None


def test_evaluating_leaves_every_module_in_its_own_mode() -> None:
    model = make()
    model.rnn.eval()
    with evaluating(model):
        assert not any(m.training for m in model.modules())
    assert model.training
    assert model.decoder.training
    assert not model.rnn.training


@pytest.mark.parametrize("training", [True, False])
def test_evaluating_restores_the_mode_after_an_error_too(training: bool) -> None:
    model = make().train(training)
    with pytest.raises(KeyError), evaluating(model):
        assert not model.training
        assert not torch.is_grad_enabled()
        raise KeyError
    assert model.training is training
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cell": "transformer"}, "cell: expected one of .*'transformer'"),
        ({"backend": "cudnn"}, "backend: expected one of .*'cudnn'"),
        ({"recurrent_init": "zeros"}, "recurrent_init: expected one of .*'zeros'"),
        ({"unroll": "twice"}, "unroll: expected one of .*'twice'"),
        ({"shared_matrix": True}, "shared_matrix: expected the cell rnn_tanh or rnn_relu, got 'gru'"),
        (
            {"shared_matrix": True, "cell": "rnn_relu", "hidden_size": 7},
            "shared_matrix: embedding_size and hidden_size must agree, got 6 and 7",
        ),
        ({"layer_dropout": 0.5}, "layer_dropout: it is applied between layers, and there is one"),
        ({"weight_drop": 0.5, "unroll": "cell"}, "unroll: 'cell' serves none of layer_dropout, weight_drop and"),
        ({"detach_every": 3, "backend": "nn"}, "detach_every: expected the backend fused, got 'nn'"),
        ({"cell": "gru_reset_before", "backend": "nn"}, "cell: torch.nn has no gru_reset_before, expected the backend"),
        ({"tied": True, "hidden_size": 7}, "embedding_size and hidden_size must agree, got 6 and 7"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LanguageModel(
            **{"vocabulary_size": V, "embedding_size": E, "hidden_size": H, "num_layers": 1}
            | {"cell": "gru"}
            | arguments
        )
