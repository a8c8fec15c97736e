from __future__ import annotations

import inflect
import pytest
import torch

from fusedrnn.lm import UnknownTokenError, Vocabulary, cut_sequences, group_chunks, human_numbers, make_corpus


def test_human_numbers_are_those_of_the_data_set(numbers: list[str]) -> None:
    assert numbers.count(".") + 1 == 9_998
    assert len(numbers) == 63_095
    assert len(set(numbers)) == 30
    assert " ".join(numbers[:12]) == "one . two . three . four . five . six ."
    assert " ".join(numbers[-7:]) == ". nine thousand nine hundred ninety nine"


def test_human_numbers_have_no_eight_thousand_no_and_no_hyphen_no_comma(numbers: list[str]) -> None:
    lines = " ".join(numbers).split(" . ")
    assert lines[7998:8000] == ["seven thousand nine hundred ninety nine", "eight thousand one"]
    assert lines[1233] == "one thousand two hundred thirty four"
    assert all(word.isalpha() for line in lines for word in line.split())
    assert "and" not in numbers


def test_a_library_that_spells_numbers_otherwise_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = inflect.engine()
    spell = engine.number_to_words
    monkeypatch.setattr(engine, "number_to_words", lambda number, **options: spell(number))
    monkeypatch.setattr(inflect, "engine", lambda: engine)
    with pytest.raises(RuntimeError, match=r"expected \(9998, 63095, 30\)"):
        human_numbers()


def test_vocabulary_ranks_tokens_by_first_appearance(numbers: list[str]) -> None:
    vocabulary = Vocabulary(numbers)
    assert vocabulary.tokens[:5] == ("one", ".", "two", "three", "four")
    assert vocabulary.tokens[-3:] == ("ninety", "hundred", "thousand")
    assert len(vocabulary) == 30


def test_decoding_undoes_encoding() -> None:
    vocabulary = Vocabulary(["a", "b", "a", "c"])
    indices = vocabulary.encode(["c", "a", "a", "b"])
    assert indices.dtype == torch.int64
    assert indices.tolist() == [2, 0, 0, 1]
    assert vocabulary.decode(indices.tolist()) == ["c", "a", "a", "b"]


def test_every_unknown_token_is_named_once() -> None:
    with pytest.raises(UnknownTokenError, match=r"'x', 'y'$"):
        Vocabulary(["a", "b"]).encode(["x", "a", "y", "x"])


@pytest.mark.parametrize("length", [1, 2, 3, 16])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 16, 17, 18, 33, 34, 35, 100])
def test_sequences_and_targets_are_those_of_the_definition(n: int, length: int) -> None:
    indices = torch.arange(n)
    starts = range(0, n - length - 1, length)
    sequences, targets = cut_sequences(indices, length)
    assert sequences.shape == targets.shape == (len(starts), length)
    assert sequences.tolist() == [list(range(i, i + length)) for i in starts]
    assert targets.tolist() == [list(range(i + 1, i + length + 1)) for i in starts]


@pytest.mark.parametrize(("count", "batch_size"), [(1, 1), (5, 1), (6, 2), (7, 2), (13, 3), (8, 8), (15, 8)])
def test_batch_i_holds_every_mth_sequence_from_i_on(count: int, batch_size: int) -> None:
    m = count // batch_size
    batches = group_chunks(torch.arange(count)[:, None], batch_size)
    assert batches.squeeze(-1).tolist() == [[i + j * m for j in range(batch_size)] for i in range(m)]


def test_fewer_sequences_than_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="3 sequences do not fill one batch of 4"):
        group_chunks(torch.zeros(3, 16), 4)


def test_human_numbers_make_49_training_and_12_validation_batches(numbers: list[str]) -> None:
    corpus = make_corpus(numbers, sequence_length=16, batch_size=64)
    assert (len(corpus.train), len(corpus.valid)) == (49, 12)
    assert {tensor.shape for batch in (*corpus.train, *corpus.valid) for tensor in batch} == {(64, 16)}
    # The first validation row begins where the first 80 % of the sequences end.
    first = corpus.vocabulary.decode(corpus.valid[0][0][0].tolist())
    assert first == numbers[3154 * 16 : 3155 * 16]


def test_row_j_of_a_batch_continues_row_j_of_the_batch_before(numbers: list[str]) -> None:
    corpus = make_corpus(numbers, sequence_length=16, batch_size=64)
    for batches, start, m in ((corpus.train, 0, 49), (corpus.valid, 3154 * 16, 12)):
        inputs = torch.cat([inputs for inputs, _ in batches], 1)
        targets = torch.cat([targets for _, targets in batches], 1)
        for row in (0, 1, 63):
            begin = start + row * m * 16
            assert corpus.vocabulary.decode(inputs[row].tolist()) == numbers[begin : begin + m * 16]
            assert corpus.vocabulary.decode(targets[row].tolist()) == numbers[begin + 1 : begin + m * 16 + 1]


def test_without_a_state_batches_are_consecutive_and_the_rest_validates(numbers: list[str]) -> None:
    corpus = make_corpus(numbers, sequence_length=3, batch_size=64, stateful=False, predict="last")
    assert (len(corpus.train), len(corpus.valid)) == (262, 66)
    assert [len(inputs) for inputs, _ in corpus.valid] == [64] * 65 + [47]
    triples = [(numbers[i : i + 3], numbers[i + 3 : i + 4]) for i in range(0, len(numbers) - 4, 3)]
    cut = int(len(triples) * 0.8)
    for batches, expected in ((corpus.train, triples[: 262 * 64]), (corpus.valid, triples[cut:])):
        got = [
            (corpus.vocabulary.decode(row.tolist()), corpus.vocabulary.decode(target.tolist()))
            for inputs, targets in batches
            for row, target in zip(inputs, targets, strict=True)
        ]
        assert got == expected


def test_targets_after_the_last_word_are_the_last_ones_of_all(numbers: list[str]) -> None:
    every, last = (make_corpus(numbers[:500], 3, 8, predict=predict) for predict in ("every", "last"))
    assert len(every.train) == len(last.train) > 1
    for (inputs, targets), (same_inputs, last_targets) in zip(every.train, last.train, strict=True):
        assert torch.equal(inputs, same_inputs)
        assert torch.equal(targets[:, -1:], last_targets)


def test_a_part_that_fills_no_batch_is_refused_without_a_state_too(numbers: list[str]) -> None:
    with pytest.raises(ValueError, match="5 sequences do not fill one batch of 8"):
        make_corpus(numbers[:70], 3, 8, stateful=False)
