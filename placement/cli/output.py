"""Standard output and error as a shell hands them over: closed, full, without a reader, or not in Unicode."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

_STANDARD = (0, 1, 2)


class WatchedStream:
    """A text stream that remembers why it could not be written to; all else is the stream's own.

    Attributes:
        error: The first error; None where there was none.
    """

    def __init__(self, stream: TextIO) -> None:
        self.error: OSError | None = None
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, as the stream does.

        Raises:
            OSError: It cannot be written to.
        """
        with self._remembering():
            return self._stream.write(text)

    def flush(self) -> None:
        """Hand all that is written to the operating system.

        Raises:
            OSError: It cannot be written to.
        """
        with self._remembering():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _remembering(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error
            raise


class Streams:
    """Standard output and error while a command runs.

    Attributes:
        is_closed: True where there is no standard output.
    """

    def __init__(self, out: WatchedStream, err: WatchedStream, *, is_closed: bool) -> None:
        self.is_closed = is_closed
        self._watched = {1: out, 2: err}

    @property
    def is_failing(self) -> bool:
        """Whether one of the two could not be written to."""
        return any(stream.error is not None for stream in self._watched.values())

    def give_up(self) -> None:
        """Let a stream that could not be written to lead nowhere, so that nothing is tried again at the end."""
        for number, stream in self._watched.items():
            if stream.error is not None:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, number)
                os.close(nowhere)


@contextlib.contextmanager
def standard_streams() -> Iterator[Streams]:
    """Make it safe to write to `sys.stdout` and `sys.stderr` as long as the context lasts.

    What the terminal's encoding lacks is written as a question mark. A stream that is closed swallows what is written;
    its number is taken, so that no file that is opened later gets it, and with it what is meant for a person.
    """
    for number in _STANDARD:
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one
    before = sys.stdout, sys.stderr
    with contextlib.ExitStack() as held:
        watched = []
        for stream in before:
            if stream is None:
                stream = held.enter_context(open(os.devnull, "w"))
            elif isinstance(stream, io.TextIOWrapper) and stream.errors != "backslashreplace":
                held.callback(stream.reconfigure, errors=stream.errors)
                stream.reconfigure(errors="replace")
            watched.append(WatchedStream(stream))
        sys.stdout, sys.stderr = watched
        try:
            yield Streams(*watched, is_closed=before[0] is None)
        finally:
            sys.stdout, sys.stderr = before
