"""Tensors, numbers and texts in a file with its digest: what a run goes on from.

The digest stands in the comment of the zip archive that `torch.save` writes, so that the file stays one that
`torch.load` reads: it is the SHA-256 of all that comes before the comment's length.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from graphs.errors import InputError
from graphs.files import write_atomically

_LABEL = b"device-placement sha256 "
_COMMENT_BYTES = len(_LABEL) + 64
_LENGTH = struct.pack("<H", _COMMENT_BYTES)
_UNREADABLE = (
    *(RuntimeError, OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError),
    *(EOFError, struct.error, pickle.UnpicklingError, zipfile.BadZipFile),
)
"""What `torch.load` raises for what it cannot read."""


def write_archive(path: Path, content: dict[str, Any]) -> None:
    """Write a file; a reader finds the old one or the new one, whole, whenever it looks.

    Raises:
        InputError: It cannot be written, for example because the disk is full; the old one stands.
    """
    archive = io.BytesIO()
    torch.save(content, archive)
    write_atomically(path, _seal(archive.getvalue()))


def unpack(data: bytes, damaged: InputError) -> tuple[Any, bool]:
    """The content of a file of these bytes, nothing of which is executed, and whether the file holds its digest.

    Args:
        data: The file.
        damaged: Raised where it cannot be read, or its digest is another one.
    """
    try:
        sealed = _is_sealed(data)
        _check_size(data)
        return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu"), sealed
    except _UNREADABLE as error:
        raise damaged from error


def _seal(archive: bytes) -> bytes:
    """An archive with its digest; `archive` ends in the length of a comment, which is 0."""
    body = archive[:-2]
    return body + _LENGTH + _LABEL + hashlib.sha256(body).hexdigest().encode()


def _is_sealed(data: bytes) -> bool:
    """Whether a file holds its digest.

    Raises:
        ValueError: It holds another one: the file was damaged.
    """
    rest, comment = data[:-_COMMENT_BYTES], data[-_COMMENT_BYTES:]
    body, length = rest[:-2], rest[-2:]
    if length != _LENGTH or not comment.startswith(_LABEL):
        return False
    if hashlib.sha256(body).hexdigest().encode() != comment[len(_LABEL) :]:
        raise ValueError("its digest is another one")
    return True


def _check_size(data: bytes) -> None:
    """Raise where an archive would unpack to more than it is.

    Raises:
        ValueError: It would.
        zipfile.BadZipFile: It is no archive.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > len(data):
            raise ValueError("it unpacks to more than it is")
