"""A PyTorch model -> the computation graph of one of its steps (`capture`), also with what it takes to run the step.

The latter is `capture_program`. Importing this loads torch.
"""

from graphs.capture.batches import batch_tensors
from graphs.capture.program import Program
from graphs.capture.step import capture
from graphs.capture.whole import capture_program

__all__ = ["Program", "batch_tensors", "capture", "capture_program"]
