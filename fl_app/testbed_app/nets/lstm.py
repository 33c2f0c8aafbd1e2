"""An LSTM that says what follows a sequence of characters or words: 820,000 parameters with 90 characters.

An embedding of 8 and two layers of 256, as in Caldas et al., LEAF: A Benchmark for Federated Settings, 2018.
"""

from typing import cast

from torch import Tensor, nn

DIMENSIONS, LEAST = 1, 1


class _Lstm(nn.Module):
    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self._embedding = nn.Embedding(vocabulary, 8)
        self._lstm = nn.LSTM(8, 256, num_layers=2, batch_first=True)
        self._dense = nn.Linear(256, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        outputs, _ = self._lstm(self._embedding(tokens))
        return cast(Tensor, self._dense(outputs[:, -1]))


def build(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return the model; each token is a class."""
    return _Lstm(classes)
