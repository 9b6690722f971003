"""What a program does besides computing: files that it writes, processes that it starts, ports that it listens on."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.bind", "socket.connect")
_watches: list[tuple[Path, list[str]]] = []


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if not _watches:
        return
    folder, seen = _watches[-1]
    if event in _FORBIDDEN:
        seen.append(f"{event} {args[:2]}")
    elif event == "open" and isinstance(args[0], str | bytes | os.PathLike):
        mode, flags = args[1] or "", args[2] or 0
        writes = any(letter in mode for letter in "wax+") or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        path = Path(os.fsdecode(args[0])).absolute()
        if writes and path != Path(os.devnull) and not path.is_relative_to(folder):
            seen.append(f"writes {path}")


sys.addaudithook(_hook)


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[list[str]]:
    """A list of what is done meanwhile that reading a file should not do; writing in `folder` is allowed."""
    seen: list[str] = []
    _watches.append((folder.absolute(), seen))
    try:
        yield seen
    finally:
        _watches.pop()
