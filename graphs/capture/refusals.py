"""Why a model cannot be captured, as one sentence: what went wrong, in which module, at which line, and what helps."""

from __future__ import annotations

import logging
import os
import re
import site
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from graphs.errors import InputError

_TORCH = os.path.dirname(torch.__file__) + os.sep
_OWN = os.path.dirname(os.path.abspath(__file__)) + os.sep
_INSTALLED = sorted({sysconfig.get_paths()["purelib"], *site.getsitepackages()}, key=len, reverse=True)

_REMEDIES = {
    "one_hot": "give it num_classes",
    "repeat_interleave": "give it output_size",
    "bincount": "use torch.nn.functional.one_hot(x, n).sum(0), which has a fixed shape",
    "_pack_padded_sequence": "give the padded sequence to the recurrent layer and mask its output by torch.where",
    "_ctc_loss": "give input_lengths and target_lengths as tuples of numbers",
    "_grouped_mm": "use torch.bmm, or bfloat16 where the sizes of the groups are fixed",
}
"""What helps where a function or an ATen op, by its name, cannot be followed."""

_HIGHER_ORDER = re.compile(r"HigherOrderOperator (\w+)")
_HIGHER_ORDER_REMEDIES = {
    "cond": "call the branch that is taken, or both and choose by torch.where",
    "map_impl": "use torch.func.vmap, or a loop in Python, which is unrolled",
}


class Failures:
    """Notes which function and which ATen op raised an error, and where the op belonged.

    Attributes:
        error: The last error that was noted.
        function: The name of the PyTorch function that the user called, ``"one_hot"``.
        op: The ATen op, ``"aten._local_scalar_dense.default"``.
        module: Path of the module that was being called.
    """

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.function = self.op = ""
        self.module: str | None = None

    def in_op(self, error: BaseException, op: Any, module: str | None) -> None:
        """An ATen op raised."""
        if error is not self.error:
            self.error, self.function, self.op, self.module = error, "", str(op), module

    def in_function(self, error: BaseException, function: Any) -> None:
        """A function of PyTorch raised; the outermost counts, which the user wrote."""
        name = getattr(function, "__name__", "")
        if error is self.error:
            self.function = name or self.function
        else:
            self.error, self.function, self.op, self.module = error, name, "", None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep PyTorch's log of what it cannot follow out of the user's sight; the refusal says it."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before = log.disabled
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = before


def refusal(error: Exception, name: str, model: nn.Module, failures: Failures) -> InputError:
    """The error for a step that raised, with the place where it did.

    Args:
        error: What was raised, as it was caught around the step.
        name: The model's name.
        model: The model.
        failures: What was noted meanwhile.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    place = _place(error, frames, model, failures)
    if isinstance(error, InputError):
        return InputError(f"{error}{f' ({place})' if place else ''}")
    what, remedy = _reason(error, frames, failures)
    place = f", {place}" if place else ""
    return InputError(f"model '{name}' cannot be traced: {what}{place}{f'; {remedy}' if remedy else ''}")


def _place(error: Exception, frames: list[FrameType], model: nn.Module, failures: Failures) -> str:
    """The module that was being called and the last line that is not PyTorch's; empty where there is neither."""
    paths = {id(module): path for path, module in model.named_modules()}
    called = [
        frame.f_locals["self"]
        for frame in frames
        if frame.f_code.co_name == "_call_impl" and id(frame.f_locals.get("self")) in paths
    ]
    parts = []
    if called:
        path = paths[id(called[-1])]
        kind = type(called[-1]).__name__
        parts.append(f"in module '{path}' ({kind})" if path else f"in the model itself ({kind})")
    elif failures.module and _is_noted(error, failures):
        parts.append(f"in module '{failures.module}'")
    lines = [
        (frame.f_code.co_filename, number)
        for frame, number in traceback.walk_tb(error.__traceback__)
        if not frame.f_code.co_filename.startswith((_TORCH, _OWN, "<frozen"))
    ]
    if lines:
        parts.append(f"at {_short(lines[-1][0])}:{lines[-1][1]}")
    return " ".join(parts)


def _short(path: str) -> str:
    """A file as a user knows it: from where packages are installed, or from the working directory."""
    for folder in [*_INSTALLED, os.getcwd()]:
        if path.startswith(folder + os.sep):
            return path[len(folder) + 1 :]
    return path


def _is_noted(error: BaseException, failures: Failures) -> bool:
    chain: list[BaseException] = []
    step: BaseException | None = error
    while step is not None and step not in chain:
        chain.append(step)
        step = step.__cause__ or step.__context__
    return failures.error in chain


def _reason(error: Exception, frames: list[FrameType], failures: Failures) -> tuple[str, str]:
    """What went wrong in one line, and what to do about it."""
    noted = _is_noted(error, failures)
    op, function = (failures.op, failures.function) if noted else ("", "")
    remedy = _remedy(frames, op, function)
    shown = f"{function} ({op})" if op and function and function not in op else op or function
    if isinstance(error, DataDependentOutputException):
        return (
            f"{shown or error} looks at a tensor's value (.item(), bool(), or control flow on data), but only shapes "
            "are known",
            remedy or "compute it outside of the step, or by tensor ops such as torch.where",
        )
    if isinstance(error, DynamicOutputShapeException):
        return (
            f"the shape that {shown or error} makes depends on values (a boolean mask, nonzero, unique)",
            remedy or "use ops of a fixed shape, such as torch.where",
        )
    if any("/torch/nested/" in frame.f_code.co_filename.replace(os.sep, "/") for frame in frames):
        # What PyTorch itself says depends on whether the program made a nested tensor before.
        return "it makes a nested tensor, whose sizes are not fixed", "use a padded tensor and a mask"
    text = " ".join(str(error).split())
    text = text.rstrip(".") if len(text) <= 300 else text[:297] + "..."
    ops_of_functions = _HIGHER_ORDER.search(text)
    if ops_of_functions:
        name = ops_of_functions[1]
        return (
            f"{name.removesuffix('_impl')} runs functions that a graph of ops cannot hold",
            _HIGHER_ORDER_REMEDIES.get(name, "write it as a loop in Python, which is unrolled"),
        )
    if ".numpy()" in text:
        remedy = remedy or "only shapes are known, so compute it outside of the step, or by tensor ops"
    if isinstance(error, TypeError) and "positional argument" in text and not op:
        remedy = "an example batch that is a tuple is (inputs, *targets), with inputs a tuple for several arguments"
    return f"{type(error).__name__}: {text}{f', in {op}' if op else ''}", remedy


def _remedy(frames: list[FrameType], op: str, function: str) -> str:
    """What helps where it is known which code asks for values; empty elsewhere."""
    files = [frame.f_code.co_filename.replace(os.sep, "/") for frame in frames]
    names = {frame.f_code.co_name for frame in frames}
    if "_detect_is_causal_mask" in names:
        return (
            "pass is_causal=True beside a causal mask and is_causal=False beside another (to nn.Transformer: "
            "src_is_causal, tgt_is_causal and memory_is_causal)"
        )
    if any("/torch/distributions/" in file for file in files):
        return "make the distribution with validate_args=False"
    in_transformers = any("/transformers/" in file for file in files)
    modules = {type(frame.f_locals.get("self")).__name__.lower() for frame in frames if "self" in frame.f_locals}
    experts = any("experts" in kind or "moe" in kind for kind in modules) or any("/moe.py" in file for file in files)
    if in_transformers and experts:
        return "set config._experts_implementation = 'batched_mm' before the model is made"
    op_name = op.split(".")[1] if op.count(".") >= 1 else ""
    return _REMEDIES.get(function) or _REMEDIES.get(op_name) or ""
