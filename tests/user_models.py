"""Models as users of nn.LSTM, nn.GRU and nn.RNN write them, with an input for each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class Tagger(nn.Module):
    """Two bidirectional layers over padded sentences, a tag for each word; padding counts for nothing in the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 6, padding_idx=0)
        self.lstm = nn.LSTM(6, 5, num_layers=2, bidirectional=True, batch_first=True, dropout=0.2)
        self.tags = nn.Linear(10, 4)

    def forward(self, words: Tensor) -> Tensor:
        y, _ = self.lstm(F.dropout(self.embedding(words), 0.1, self.training))
        return (self.tags(y) * (words != 0).unsqueeze(-1)).flatten(1)


class PackedTagger(Tagger):
    """The same over packed sentences, which the layer reads backward from their last word."""

    def forward(self, words: Tensor) -> Tensor:
        lengths = (words != 0).sum(1)
        x = pack_padded_sequence(self.embedding(words), lengths, batch_first=True, enforce_sorted=False)
        y, (h, _) = self.lstm(x)
        tags = self.tags(pad_packed_sequence(y, batch_first=True, total_length=words.shape[1])[0])
        return torch.cat([tags.flatten(1), h[-2], h[-1]], 1)


class Seq2Seq(nn.Module):
    """A GRU reads the source; an LSTMCell writes the target step by step, with attention on what was read."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 6)
        self.encoder = nn.GRU(6, 5, bidirectional=True)
        self.bridge = nn.Linear(10, 7)
        self.decoder = nn.LSTMCell(6 + 10, 7)
        self.query = nn.Linear(7, 10)
        self.words = nn.Linear(7 + 10, 20)

    def forward(self, source: Tensor) -> Tensor:
        memory, h_n = self.encoder(self.embedding(source))
        h = torch.tanh(self.bridge(torch.cat(tuple(h_n), -1)))
        c = torch.zeros_like(h)
        word = source[0]
        outputs = []
        for _ in range(4):
            weights = torch.einsum("tbm,bm->tb", memory, self.query(h)).softmax(0)
            context = torch.einsum("tb,tbm->bm", weights, memory)
            h, c = self.decoder(torch.cat([self.embedding(word), context], -1), (h, c))
            logits = self.words(torch.cat([h, context], -1))
            outputs.append(logits)
            word = logits.argmax(-1)
        return torch.stack(outputs, 1)


class RecurrentPolicy(nn.Module):
    """Actor and critic on one GRU that carries its state from chunk to chunk; episodes that end reset it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 5), nn.ReLU())
        self.gru = nn.GRU(5, 7)
        self.step = nn.RNNCell(7, 3, nonlinearity="relu")
        self.policy, self.value = nn.Linear(3, 2), nn.Linear(3, 1)

    def forward(self, observations: Tensor) -> Tensor:
        self.gru.flatten_parameters()
        state = observations.new_zeros(1, observations.shape[1], 7)
        results = []
        for i, chunk in enumerate(observations.split(2)):
            y, state = self.gru(self.body(chunk), state)
            state = state.detach() * (torch.arange(state.shape[1]) != i).to(state).view(1, -1, 1)
            for y_t in y:
                h = self.step(y_t)
                results.append(torch.cat([self.policy(h), self.value(h)], -1))
        return torch.stack(results, 1)


class WeightDrop(nn.Module):
    """DropConnect on the recurrent weights of a layer, as AWD-LSTM's public implementations do it."""

    def __init__(self, module: nn.Module, p: float, name: str = "weight_hh_l0") -> None:
        super().__init__()
        self.module, self.p, self.name = module, p, name
        raw = getattr(module, name)
        self.register_parameter(f"{name}_raw", nn.Parameter(raw.data))
        del module._parameters[name]
        self._set()

    def _set(self) -> None:
        raw = getattr(self, f"{self.name}_raw")
        setattr(self.module, self.name, F.dropout(raw, self.p, self.training))

    def forward(self, *args: Tensor) -> tuple[Tensor, Tensor]:
        self._set()
        return self.module(*args)


class WeightDroppedLanguageModel(nn.Module):
    """Tied embedding, two weight-dropped LSTM layers of different sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 6)
        self.rnns = nn.ModuleList([WeightDrop(nn.LSTM(6, 8), 0.5), WeightDrop(nn.LSTM(8, 6), 0.5)])
        self.decoder = nn.Linear(6, 20)
        self.decoder.weight = self.embedding.weight

    def forward(self, words: Tensor) -> Tensor:
        x = self.embedding(words)
        for rnn in self.rnns:
            x, _ = rnn(x)
        return self.decoder(x).transpose(0, 1)


class Siamese(nn.Module):
    """One layer under two names, and a cell that stands in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.RNN(4, 5, nonlinearity="relu", batch_first=True)
        self.right = self.left
        self.cells = nn.ModuleList([nn.GRUCell(5, 3), nn.RNNCell(3, 3)])

    def forward(self, x: Tensor) -> Tensor:
        h = self.left(x)[1][0] - self.right(x.flip(1))[1][0]
        for cell in self.cells:
            h = cell(h)
        return h


def words(*size: int) -> Tensor:
    return torch.randint(1, 20, size)


def padded_words() -> Tensor:
    return words(4, 7) * (torch.arange(7) < torch.tensor([7, 3, 5, 1]).unsqueeze(1))


USER_MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "tagger": (Tagger, padded_words),
    "packed-tagger": (PackedTagger, padded_words),
    "seq2seq": (Seq2Seq, lambda: words(6, 3)),
    "policy": (RecurrentPolicy, lambda: torch.randn(5, 4, 6, dtype=torch.float64)),
    "weight-drop": (WeightDroppedLanguageModel, lambda: words(6, 3)),
    "siamese": (Siamese, lambda: torch.randn(3, 6, 4, dtype=torch.float64)),
}
"""By name: what makes a model, and what makes a batch; words, or float64."""
