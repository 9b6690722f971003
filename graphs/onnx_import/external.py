"""The few numbers that shapes need of a tensor that lies in a file beside the model.

Weights in such files are never read: what the model says of their size is enough.
"""

from __future__ import annotations

import os
import stat
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from graphs.errors import InputError
from graphs.onnx_import.values import dtype_of

_LONGEST_PATH = 4096


def read_external(tensor: Any, model: Path) -> np.ndarray:
    """Read a small tensor that lies in another file.

    Args:
        tensor: An `onnx.TensorProto` whose ``data_location`` is external; at most some thousand bytes are read.
        model: The model's path. The file must lie in its folder, or below it.

    Raises:
        InputError: The file lies elsewhere, is missing, or is too short.
    """
    from onnx import numpy_helper

    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    where = f"tensor '{tensor.name}', which shapes depend on, lies in the file '{location[:200]}'"
    path = _inside(location, model)
    if path is None:
        raise InputError(f"{where}, which is outside the model's folder; move it there and export the model again")
    try:
        offset = int(entries.get("offset", "0") or 0)
        if offset < 0:
            raise ValueError
    except ValueError:
        raise InputError(f"{where}, but has no valid offset there; export the model again") from None
    raw = type(tensor)()
    raw.CopyFrom(tensor)
    raw.ClearField("external_data")
    raw.ClearField("data_location")
    length = _bytes_of(tensor)
    try:
        # Without blocking: opening a pipe would wait for someone who writes into it.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(descriptor, "rb") as file:
            regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            if regular:
                file.seek(offset)
                raw.raw_data = file.read(length)
    except FileNotFoundError as error:
        raise InputError(f"{where}, which is not there; copy it beside the model") from error
    except (OSError, OverflowError, ValueError) as error:
        raise InputError(f"{where}, which cannot be read; give a file that may be read") from error
    if not regular:
        raise InputError(f"{where}, which is not a regular file; export the model again")
    if len(raw.raw_data) < length:
        raise InputError(f"{where}, which is too short; copy it again")
    return np.asarray(numpy_helper.to_array(raw))


def _inside(location: str, model: Path) -> Path | None:
    """The path of a file in the model's folder, None for one elsewhere.

    A link is followed only into the folder of the model, or the one that the model's own link leads to (a download
    cache is made of such links).
    """
    posix, windows = PurePosixPath(location), PureWindowsPath(location)
    if not location or "\0" in location or len(location) > _LONGEST_PATH:
        return None
    if posix.is_absolute() or windows.anchor or ".." in posix.parts or ".." in windows.parts:
        return None
    path = model.parent / location
    try:
        real = path.resolve()
        folders = (model.parent.resolve(), model.resolve().parent)
        return path if any(real.is_relative_to(folder) for folder in folders) else None
    except (OSError, RuntimeError, ValueError):
        return None


def _bytes_of(tensor: Any) -> int:
    return (prod(tensor.dims) * dtype_of(tensor.data_type, tensor.name)[1] + 7) // 8
