"""How the chains of a search go about it."""

from __future__ import annotations

from dataclasses import dataclass

from graphs.errors import InputError

FINEST = ("groups", "ops")


@dataclass(frozen=True)
class MoveConfig:
    """How the chains go about it.

    Attributes:
        chains: How many begin, each on a core of its own where there are so many.
        survivors: Of these, how many go on after a quarter of the run, or of each of its rounds
            (`placement.move_search.plan`): those that stand best by then, and in rounds the first chain in any case;
            None for all.
        learning_rate: Of the features' weights; 0 keeps those that were set by hand.
        kind_rate: Of the kinds of move; 0 keeps all equally likely.
        uniform_share: Share of the moves whose unit and device are drawn uniformly, and for half of which the kind is,
            too; 1 leaves learning out.
        finest: Last stage: ``"groups"`` moves groups only, ``"ops"`` what the graph's constraints allow.

    Raises:
        InputError: A value is out of its range; the message names the field.
    """

    chains: int = 2
    survivors: int | None = None
    learning_rate: float = 0.1
    kind_rate: float = 0.02
    uniform_share: float = 0.5
    finest: str = "ops"

    def __post_init__(self) -> None:
        def need(ok: bool, key: str, must: str) -> None:
            if not ok:
                raise InputError(f"search config: {key} is {getattr(self, key)!r}; it must be {must}")

        need(self.chains > 0, "chains", "positive")
        need(0 < self.num_surviving <= self.chains, "survivors", f"from 1 to chains, {self.chains}")
        for key in ("learning_rate", "kind_rate"):
            need(getattr(self, key) >= 0, key, "0 or more")
        need(0 <= self.uniform_share <= 1, "uniform_share", "from 0 to 1")
        need(self.finest in FINEST, "finest", f"one of {', '.join(FINEST)}")

    @property
    def num_surviving(self) -> int:
        """How many chains go on."""
        return self.chains if self.survivors is None else self.survivors
