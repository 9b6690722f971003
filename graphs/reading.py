"""Reading files that anybody may have made: regular files of bounded size, in bounded steps.

Nothing here trusts a file: a device or a pipe in a file's place, an archive that unpacks to far more than it is, and a
text that would become far more in memory are refused, each in one sentence.
"""

from __future__ import annotations

import errno
import os
import stat
import zlib
from pathlib import Path
from typing import TypeVar

import msgspec

from graphs.errors import InputError

T = TypeVar("T")

MOST_BYTES = 2**28
"""Bytes of a file, unpacked, that are read at most: 256 MiB, far more than a graph of 100,000 ops."""

MOST_MEMORY_BYTES = 10**9
"""Bytes that the values of a JSON text may take in memory, by a rough count."""

_STEP = 2**20


def read_file(path: str | os.PathLike[str], what: str, *, most_bytes: int = MOST_BYTES) -> bytes:
    """The bytes of a regular file.

    Args:
        path: The file.
        what: What it is called in messages, for example ``"graph file"``.
        most_bytes: Of a larger one no more than this is read.

    Raises:
        InputError: It cannot be opened, is a device, a pipe or a folder, or is too large. `is_missing` tells a missing
            file from the rest.
    """
    try:
        # Without O_NONBLOCK a pipe that nobody writes to is waited for.
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no file can have such a name"
        raise InputError(f"cannot read {what} '{_name(path)}': {reason}; give a file that may be read") from error
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"cannot read {what} '{path}': {_kind(found.st_mode)}; give a regular file")
        parts, size = [], 0
        while part := os.read(file, _STEP):
            size += len(part)
            if size > most_bytes:
                raise InputError(
                    f"cannot read {what} '{path}': it is larger than {most_bytes / 2**20:g} MiB, the most that is "
                    "read; give a smaller one"
                )
            parts.append(part)
    except OSError as error:
        raise InputError(f"cannot read {what} '{path}': {error.strerror}; give a file that may be read") from error
    finally:
        os.close(file)
    return b"".join(parts)


def is_missing(error: InputError) -> bool:
    """Whether `read_file` failed because there is no such file."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.ENOENT, errno.ENOTDIR)


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether there is such a file or folder; there is none by a name that no file can have."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def gunzip(data: bytes, *, most_bytes: int = MOST_BYTES) -> bytes:
    """Unpack gzip, of one part or of several, and stop where it becomes too large.

    Raises:
        InputError: It is no whole gzip file, or too large unpacked; without the file's name.
    """
    unpacked, size = [], 0
    while True:
        unpacker = zlib.decompressobj(wbits=31)
        while not unpacker.eof:
            try:
                part = unpacker.decompress(data, _STEP)
            except zlib.error as error:
                raise InputError(f"it is not a whole gzip file ({error}): write or copy it again") from error
            size += len(part)
            if size > most_bytes:
                raise InputError(f"it unpacks to more than {most_bytes / 2**20:g} MiB, the most that is read")
            unpacked.append(part)
            data = unpacker.unconsumed_tail
            if not part and not data and not unpacker.eof:
                raise InputError("it is not a whole gzip file (it ends too soon): write or copy it again")
        data = unpacker.unused_data.lstrip(b"\0")
        if not data:
            return b"".join(unpacked)


def decode_json(data: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Decode JSON whose values fit into memory and whose nesting is that of a file of ours.

    Raises:
        InputError: It is nested too deeply or too large in memory; without the file's name.
        msgspec.DecodeError: It is no JSON, or not of the decoder's type.
    """
    check_json_size(data)
    try:
        return decoder.decode(data)
    except RecursionError as error:
        raise InputError("it is nested too deeply to be what it should be; write it again") from error
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(f"it is not UTF-8 text ({error.reason} at byte {error.start})") from error


def check_json_size(data: bytes) -> None:
    """Raise where JSON would take far more memory than it has bytes: each bracket and comma is a Python object.

    Raises:
        InputError: It would; without the file's name.
    """
    need = len(data) + 200 * data.count(b"{") + 64 * data.count(b"[") + 40 * data.count(b",")
    if need > MOST_MEMORY_BYTES:
        raise InputError(
            f"it would take about {need / 1e9:.1f} GB of memory, more than the {MOST_MEMORY_BYTES / 1e9:g} GB that a "
            "file may; give a smaller one"
        )


def _name(path: str | os.PathLike[str]) -> str:
    """A path as it can be shown: what no text can hold is escaped."""
    return os.fspath(path).encode("utf-8", "backslashreplace").decode()


def _kind(mode: int) -> str:
    for test, name in (
        (stat.S_ISDIR, "it is a folder"),
        (stat.S_ISFIFO, "it is a pipe"),
        (stat.S_ISCHR, "it is a device"),
        (stat.S_ISBLK, "it is a device"),
        (stat.S_ISSOCK, "it is a socket"),
    ):
        if test(mode):
            return name
    return "it is no regular file"
