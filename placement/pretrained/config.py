"""How the pretrained policy is trained."""

from __future__ import annotations

from dataclasses import dataclass

from graphs.errors import InputError

MOST_PROBLEMS = 4096
"""More problems an update are a slip of the keyboard."""


@dataclass(frozen=True)
class PretrainConfig:
    """How the policy is trained.

    Attributes:
        samples: Placements a round.
        rounds: Rounds an update: after each the best samples are known to the next.
        learning_rate: Of Adam, at first.
        half_life: Updates in which it halves.
        entropy_bonus: Weight of the mean entropy of a decision in the loss, at first.
        wanted_entropy: Nats a decision: the weight rises where the policy decides more surely, and falls otherwise.
        clip_norm: The gradient is scaled down to this norm where it is larger.
        imitation_updates: Updates at the start that imitate what a short search finds.
        imitation_evaluations: Placements that this search evaluates.
        contiguous_evaluations: Placements that the heuristic of contiguous runs may evaluate; the others evaluate none.
        groups: Wanted numbers of groups, or of parts of groups; each problem has one of them.
        parts_share: Share of the problems whose groups are parted as finely as that number allows.
        validation_problems: Problems of families that are trained on, by which the best weights are chosen.
        validate_every: Updates between two looks at them.
        problems: Problems of an update, whose mean gradient makes one step of Adam; each is a job for a worker. None
            learns from one problem, with a step of Adam after each round.
    """

    samples: int = 16
    rounds: int = 3
    learning_rate: float = 1e-3
    half_life: int = 500
    entropy_bonus: float = 0.01
    wanted_entropy: float = 0.25
    clip_norm: float = 1.0
    imitation_updates: int = 40
    imitation_evaluations: int = 300
    contiguous_evaluations: int = 100
    groups: tuple[int, ...] = (24, 32, 48, 64, 64, 96)
    parts_share: float = 0.7
    validation_problems: int = 12
    validate_every: int = 100
    problems: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("samples", 2), ("rounds", 1), ("half_life", 1), ("validate_every", 1)):
            if getattr(self, name) < least:
                raise InputError(f"pretraining: {name} is {getattr(self, name)}; it must be at least {least}")
        if self.problems is not None and not 1 <= self.problems <= MOST_PROBLEMS:
            raise InputError(f"pretraining: problems is {self.problems}; it must be from 1 to {MOST_PROBLEMS}")
