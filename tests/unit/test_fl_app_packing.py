"""A model's arrays on their way: one array, and afterwards the same as before."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord

sys.path.insert(0, str(Path(__file__).parents[2] / "fl_app"))

from testbed_app import models, packing


@pytest.mark.parametrize("name", models.names())
def test_every_model_is_one_array_and_comes_back_as_it_was(name: str) -> None:
    model = models.create(name, 42, (20,) if name == "lstm" else (3, 32, 32), 10)
    arrays = ArrayRecord(model.state_dict())
    packed = packing.pack(arrays, models.shapes(model))
    assert [array.dtype for array in packed.values()] == ["float32"]
    back = packing.unpack(packed, models.shapes(model)).to_torch_state_dict()
    assert list(back) == list(arrays)
    assert all(torch.equal(back[name], value) for name, value in model.state_dict().items())


def test_what_a_strategy_computed_in_doubles_travels_in_floats_and_in_the_models_order() -> None:
    arrays = ArrayRecord({"b": Array(np.array([5.0])), "a": Array(np.arange(4.0).reshape(2, 2))})
    packed = packing.pack(arrays, {"a": (2, 2), "b": ()})
    assert [(array.dtype, array.shape) for array in packed.values()] == [("float32", (5,))]
    back = packing.unpack(packed, {"a": (2, 2), "b": ()})
    assert back["a"].numpy().tolist() == [[0, 1], [2, 3]]
    assert back["b"].numpy() == 5
