"""What the pretrained policy is trained on and what is kept from it: the only place that says so.

Ten families are held out whole, some of them the only ones of their kind. Seeds are kept apart, too: a problem that the
policy is judged by, during its training or after, is never one that it learns from.
"""

from __future__ import annotations

from placement.pretrained.families import FAMILIES

HELD_OUT = (
    "contrast",
    "expert towers",
    "graph attention",
    "graph network",
    "searched cells",
    "sequence to sequence, both ways",
    "speech",
    "two players",
    "u-shape",
    "wide and deep",
)
"""Families that no training draws from."""

TRAINED_ON = tuple(sorted(set(FAMILIES) - set(HELD_OUT)))
"""Families that trainings draw from."""

FIRST_TRAINING_SEED = 0
FIRST_VALIDATION_SEED = 10**9
FIRST_TEST_SEED = 2 * 10**9
