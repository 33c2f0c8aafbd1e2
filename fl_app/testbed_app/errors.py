"""The app's one error."""

from fltestbed.telemetry import RunError


class AppError(RunError):
    """What the user has to solve: the text becomes the reason of a failed client or run."""
