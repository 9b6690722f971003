"""Checks of arguments that several verbs share; a name is what whoever gave the value calls it."""

from __future__ import annotations

from pathlib import Path

from graphs.errors import InputError
from graphs.extras import check_plots


def check_positive(name: str, value: float | None) -> None:
    """Raise where a figure is not positive and finite; None is none that was given.

    Raises:
        InputError: It is not.
    """
    if value is not None and not 0 < value < float("inf"):
        raise InputError(f"{name} is {value}; it must be positive")


def check_at_least_one(name: str, value: int) -> None:
    """Raise where a number is below 1.

    Raises:
        InputError: It is.
    """
    if value < 1:
        raise InputError(f"{name} is {value}; it must be at least 1")


def check_can_write(*paths: Path | None) -> None:
    """Raise before what takes long, not after it; None is no file.

    Raises:
        InputError: A file cannot be written where it should be.
    """
    for path in paths:
        if path is not None and not path.parent.is_dir():
            raise InputError(f"cannot write '{path}': there is no directory '{path.parent}'; make it first")
        if path is not None and path.is_dir():
            raise InputError(f"cannot write '{path}': it is a directory; give the name of a file")


def check_can_plot(name: str, path: Path | None) -> None:
    """Raise before a long search, not after it, where a picture is asked for; None is none.

    Raises:
        InputError: Matplotlib is not installed.
    """
    if path is not None:
        check_plots(name)


def check_ends(name: str, path: Path, kind: str, suffixes: tuple[str, ...]) -> None:
    """Raise where a file's name does not end as those of its kind do.

    Raises:
        InputError: It does not.
    """
    if not path.name.endswith(suffixes):
        raise InputError(f"{name} '{path}' is not the name of a {kind}: it must end in {' or '.join(suffixes)}")
