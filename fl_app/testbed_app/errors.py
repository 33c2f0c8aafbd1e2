"""The app's one error."""


class AppError(Exception):
    """What the user has to solve: the text becomes the reason of a failed client or run."""
