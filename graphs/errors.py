"""The errors that a user is meant to read: one sentence each, shown without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def printable(text: str) -> str:
    r"""The text with every character that a terminal would not show, or would obey, as its escape.

    >>> print(printable("a\x1b[2Jb"))
    a\x1b[2Jb
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class InputError(ValueError):
    """Bad input: the message is one sentence that names the culprit and the remedy (exit code 2).

    What cannot be printed in the message (a line break in a name that a user gave) is shown as its escape, so that it
    stays one line.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class InputWarning(UserWarning):
    """Input that is taken, but of which something is not used; the command shows it as one line."""


class NoFeasiblePlacementError(RuntimeError):
    """No placement fits: the message says which memory is short and by how much (exit code 3)."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """Make the error for a name that is not in a list of names.

    Args:
        kind: What the name should have named, for example ``"cluster"``.
        name: What the user wrote.
        known: The names that exist.

    Returns:
        An error whose message holds the name, the nearest match and the whole list.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    return InputError(f"unknown {kind} '{name}'{hint}; known: {', '.join(names)}")
