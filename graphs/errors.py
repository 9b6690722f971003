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


LONGEST = 1200
"""Characters of an error's message: a name of a million characters is cut out of the middle."""


def sentence(message: str) -> str:
    """A message on one line that a terminal shows as it is, and that is no longer than `LONGEST`."""
    shown = printable(message if len(message) <= 2 * LONGEST else f"{message[:LONGEST]}{message[-LONGEST:]}")
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST * 2 // 3]} ... {shown[-LONGEST // 3 + 5 :]}"


class InputError(ValueError):
    """Bad input: the message is one sentence that names the culprit and the remedy (exit code 2).

    What cannot be printed in the message (a line break in a name that a user gave) is shown as its escape, so that it
    stays one line.
    """

    def __init__(self, message: str) -> None:
        super().__init__(sentence(message))


class InputWarning(UserWarning):
    """Input that is taken, but of which something is not used; the command shows it as one line."""


class NotServedError(InputError):
    """What was asked for is not on offer for this input or on this machine; nothing is wrong with the input itself.

    Attributes:
        reason: Why, in a few words for lists: ``"no rule for this graph"``.
    """

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class NoFeasiblePlacementError(RuntimeError):
    """No placement fits: the message says which memory is short and by how much (exit code 3)."""

    def __init__(self, message: str) -> None:
        super().__init__(sentence(message))


_MANY, _NEAREST = 60, 12
"""Of more than so many names an error lists so many of the nearest."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """Make the error for a name that is not in a list of names.

    Args:
        kind: What the name should have named, for example ``"cluster"``.
        name: What the user wrote.
        known: The names that exist.

    Returns:
        An error whose message holds the name, the nearest match and the list; of a list that is long, what is nearest.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    shown = names
    if len(names) > _MANY:
        shown = difflib.get_close_matches(name, names, n=_NEAREST, cutoff=0.5) or names[:_NEAREST]
    rest = f" and {len(names) - len(shown)} more" if len(shown) < len(names) else ""
    return InputError(f"unknown {kind} '{name}'{hint}; known: {', '.join(shown)}{rest}")
