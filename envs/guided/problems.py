"""Where a guided environment's problems come from: one, a list, or a family that a seed draws from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from envs.guided.guide import Guide, Votes, make_guide
from envs.problem import PlacementProblem
from graphs.errors import InputError

Problems = Sequence[PlacementProblem] | Callable[[np.random.Generator], PlacementProblem]
"""Problems to draw from, or what makes a fresh one of random numbers."""

_SIZING_SEED = 0


class Supply:
    """Gives each episode its problem, with votes and reference.

    Args:
        problem: The one problem of all episodes; or None.
        problems: In its place, what episodes draw from. The guides of a list are made once and kept.
        votes: As of `envs.guided.guide.make_guide`; placements by name are those of one problem.
        failing_s: The failing signal; by default each problem's own.
        devices: Devices that the spaces have room for; by default those of the problem with most, of what is called
            once with a seed of its own those of what it then makes.
        groups: Groups likewise.

    Attributes:
        devices: As given, or found.
        groups: As given, or found.

    Raises:
        InputError: There is no problem, or votes by name for several.
    """

    def __init__(
        self,
        problem: PlacementProblem | None,
        problems: Problems | None,
        *,
        votes: Votes | Mapping[str, NDArray[np.integer]] | None,
        failing_s: float | None,
        devices: int | None = None,
        groups: int | None = None,
    ) -> None:
        self._votes = votes
        self._failing_s = failing_s
        self._make = problems if callable(problems) else None
        self._known: list[PlacementProblem] = [] if callable(problems) or problems is None else list(problems)
        if problem is not None:
            self._known = [problem]
        if self._make is None and not self._known:
            raise InputError("problems is empty; give at least one problem, or a function that makes them")
        if isinstance(votes, Mapping) and len(self._known) != 1:
            raise InputError("votes by name are for one problem; give a function that makes them for each of several")
        self._guides: dict[int, Guide] = {}
        sample = self._known or [self._made(np.random.default_rng(_SIZING_SEED))]
        self.devices = max(p.num_devices for p in sample) if devices is None else devices
        self.groups = max(p.num_groups for p in sample) if groups is None else groups
        for known in self._known:
            self._check_room(known)

    def draw(self, rng: np.random.Generator) -> Guide:
        """The problem of the next episode.

        Raises:
            InputError: It has more devices or groups than there is room for.
        """
        if self._make is not None:
            problem = self._made(rng)
            self._check_room(problem)
            return make_guide(problem, self._votes, failing_s=self._failing_s)
        number = int(rng.integers(len(self._known))) if len(self._known) > 1 else 0
        if number not in self._guides:
            self._guides[number] = make_guide(self._known[number], self._votes, failing_s=self._failing_s)
        return self._guides[number]

    def _made(self, rng: np.random.Generator) -> PlacementProblem:
        assert self._make is not None
        return self._make(rng)

    def _check_room(self, problem: PlacementProblem) -> None:
        for what, argument, count, room in (
            ("devices", "devices", problem.num_devices, self.devices),
            ("groups", "most_groups", problem.num_groups, self.groups),
        ):
            if count > room:
                raise InputError(
                    f"a problem (graph '{problem.graph.name}', cluster '{problem.cluster.name}') has {count} {what}, "
                    f"but the environment has room for {room}; make it with {argument}={count}"
                )
