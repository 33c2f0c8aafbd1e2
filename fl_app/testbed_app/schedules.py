"""How the clients' learning rate changes from round to round."""

import math
from collections.abc import Mapping
from typing import Any

from testbed_app.errors import AppError


def share(wanted: Mapping[str, Any], server_round: int, rounds: int) -> float:
    """Return the share of its learning rate that a client has in a round, which is from 1 to `rounds`.

    The cosine is that of Loshchilov and Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts, ICLR 2017,
    without restarts. Raises AppError for an unknown schedule.
    """
    name, done = wanted["name"], server_round - 1
    match name:
        case "constant":
            return 1.0
        case "step":
            return float(wanted["factor"] ** (done // wanted["every"]))
        case "exponential":
            return float(wanted["factor"] ** done)
        case "cosine":
            return float(wanted["least"] + (1 - wanted["least"]) * (1 + math.cos(math.pi * done / rounds)) / 2)
    raise AppError(f"there is no schedule {name!r}; the app has constant, cosine, exponential, step")
