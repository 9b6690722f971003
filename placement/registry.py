"""Every placer by name, the learned ones included, for whoever lets a user choose."""

from __future__ import annotations

from graphs.errors import InputError, unknown_name
from placement.placers import HEURISTICS, PlacerInfo

LEARNED = PlacerInfo(
    "reinforce",
    "placement.learning.placer:place",
    "the learned seq2seq policy (Mirhoseini et al., 2017)",
    learns=True,
    searches=True,
)

PRETRAINED = PlacerInfo(
    "pretrained",
    "placement.pretrained.placer:place",
    "the policy that is shipped with its weights, asked at once: nothing is trained or searched",
)

PLACERS: dict[str, PlacerInfo] = {**HEURISTICS, PRETRAINED.name: PRETRAINED, LEARNED.name: LEARNED}
"""Every placer, by name."""


def get_placer(name: str) -> PlacerInfo:
    """Look up a placer.

    Raises:
        InputError: There is no placer of that name; the message lists those that exist.
    """
    if name not in PLACERS:
        raise unknown_name("placer", name, PLACERS)
    return PLACERS[name]


def choose_placers(text: str) -> list[str]:
    """The placers that a user means by ``"heft,etf"`` or ``"all"``.

    Raises:
        InputError: A name is unknown, or there is none.
    """
    names = list(PLACERS) if text.strip() == "all" else [n.strip() for n in text.split(",") if n.strip()]
    if not names:
        raise InputError(f"--placers names no placer; known: all, {', '.join(PLACERS)}")
    for name in names:
        get_placer(name)
    return list(dict.fromkeys(names))
