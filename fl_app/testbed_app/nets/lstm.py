"""An LSTM that says what follows a sequence of characters or words: 820,000 parameters with 90 characters.

An embedding of 8 and two layers of 256, as in Caldas et al., LEAF: A Benchmark for Federated Settings, 2018.
"""

from typing import cast

from torch import Tensor, nn

from testbed_app.nets import part

DIMENSIONS, LEAST = 1, 1


class _Lstm(nn.Module):
    def __init__(self, vocabulary: int, embedding: int, hidden: int) -> None:
        super().__init__()
        self._embedding = nn.Embedding(vocabulary, embedding)
        self._lstm = nn.LSTM(embedding, hidden, num_layers=2, batch_first=True)
        self._dense = nn.Linear(hidden, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        outputs, _ = self._lstm(self._embedding(tokens))
        return cast(Tensor, self._dense(outputs[:, -1]))


def build(shape: tuple[int, ...], classes: int, share: float) -> nn.Module:
    """Return the model; each token is a class."""
    return _Lstm(classes, part(8, share), part(256, share))
