"""Two classes of points in the plane, and a line between them."""

import numpy as np


def draw(seed: int, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Return points with a column of ones, of shape (points, 3), and their classes, 0 or 1."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 2, points)
    return np.column_stack([rng.normal(2.0 * classes[:, None], 1.0, (points, 2)), np.ones(points)]), classes


def probabilities(weights: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return of each point how likely it is of class 1."""
    return np.asarray(1 / (1 + np.exp(-points @ weights)))


def train(weights: np.ndarray, points: np.ndarray, classes: np.ndarray, learning_rate: float) -> np.ndarray:
    """Return the weights after twenty steps down the gradient."""
    for _ in range(20):
        weights = weights - learning_rate * points.T @ (probabilities(weights, points) - classes) / len(classes)
    return weights


def accuracy(weights: np.ndarray, points: np.ndarray, classes: np.ndarray) -> float:
    """Return the share of the points that lie on the right side."""
    return float(np.mean((probabilities(weights, points) > 0.5) == classes))
