"""A PyTorch model -> the computation graph of one of its steps: `capture`. Importing it loads torch."""

from graphs.capture.step import capture

__all__ = ["capture"]
