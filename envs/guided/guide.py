"""What a guided environment knows of a problem before anything is placed: parts, votes, the reference.

Letters as in `envs.guided`; ``P`` pairs of groups that exchange tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from envs.guided import fields
from envs.guided.kernel import EACH, Picture, Scratch, earliest_finish, look, make_scratch, outlooks
from envs.observation import Observer
from envs.placement_env import default_failing_s
from envs.problem import PlacementProblem
from envs.simulator.workspace import available_cores, pool
from envs.task_graph import TaskGraph, of_groups
from graphs.errors import InputError

Votes = Callable[[PlacementProblem], Mapping[str, NDArray[np.integer]]]
"""Placements of groups, ``int[G]``, by what made them: what heuristics would do."""


@dataclass(frozen=True, eq=False)
class Guide:
    """A problem, and what guides through it.

    Attributes:
        problem: What is placed.
        picture: Its parts, and what the compiled loops read besides.
        names: Of the `H` placements voted for.
        votes_s: ``float64[H]``, what the problem answers for each, the failing signal where it is infeasible.
        failing_s: The failing signal.
        reference: ``int64[G]``, the best of the votes.
        reference_s: What the problem answers for it, or the failing signal.
        traffic: ``(sender int64[P], reader int64[P], bytes float64[P])`` between groups.
        idle: Scratch that no thread has just now.
    """

    problem: PlacementProblem
    picture: Picture
    names: tuple[str, ...]
    votes_s: NDArray[np.float64]
    failing_s: float
    reference: NDArray[np.int64]
    reference_s: float
    traffic: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]
    idle: list[Scratch] = field(default_factory=list)

    @property
    def outlook_s(self) -> float:
        """The outlook of the reference."""
        return float(self.picture.reference_s[0])

    def outlooks_s(self, placements: NDArray[np.integer]) -> NDArray[np.float64]:
        """``float64[B]``: rough step times of complete placements, ``int[B, G]``."""
        rows = np.ascontiguousarray(placements, dtype=np.int64)
        seconds = np.empty(len(rows))
        with self._scratch() as scratch:
            outlooks(self.picture, scratch, rows, seconds)
        return seconds

    def rows(self, placement: NDArray[np.integer], known: int, devices: int) -> Rows:
        """Each group in turn looked at, the others where `placement` has them.

        Args:
            placement: ``int[G]``.
            known: Groups before it count as placed: 0 for none, ``G`` for all but the one that is looked at.
            devices: Devices that the layout has room for.
        """
        count = self.problem.num_groups
        rows = np.tile(np.asarray(placement, dtype=np.int64), (count, 1))  # [G, G]
        now_s = np.full(count, self.outlooks_s(rows[:1])[0])
        tried_s = np.empty((count, self.problem.num_devices))
        view = np.zeros((count, fields.size(devices)), dtype=np.float32)
        mask = np.zeros((count, devices), dtype=np.bool_)

        def some(scratch: Scratch, first: int, last: int) -> None:
            look(self.picture, scratch, rows, known, EACH, now_s, tried_s, view, mask, devices, first, last)

        self.in_parts(count, some)
        return Rows(view, mask)

    def in_parts(self, count: int, work: Callable[[Scratch, int, int], None]) -> None:
        """Call ``work(scratch, first, last)`` for a share of `count` rows on each core; the results are the same."""
        parts = max(min(available_cores(), count // _LEAST_ROWS), 1)

        def part(number: int) -> None:
            with self._scratch() as scratch:
                work(scratch, count * number // parts, count * (number + 1) // parts)

        others = [pool().submit(part, number) for number in range(1, parts)]
        part(0)
        for other in others:
            other.result()

    @contextmanager
    def _scratch(self) -> Iterator[Scratch]:
        """Scratch that no other thread has; kept for the next call."""
        try:
            scratch = self.idle.pop()
        except IndexError:
            scratch = make_scratch(self.picture)
        yield scratch
        self.idle.append(scratch)


@dataclass(frozen=True, eq=False)
class Rows:
    """An observation of each group.

    Attributes:
        view: ``float32[G, F]``; see `envs.guided.fields`.
        mask: ``bool[G, M]``, as of `envs.guided.kernel.look`.
    """

    view: NDArray[np.float32]
    mask: NDArray[np.bool_]


_LEAST_ROWS = 4
"""Rows that are worth a thread."""


def make_guide(
    problem: PlacementProblem, votes: Votes | Mapping[str, NDArray[np.integer]] | None = None, *,
    failing_s: float | None = None,
) -> Guide:  # fmt: skip
    """Look at a problem, ask the heuristics, and have their placements simulated.

    Args:
        problem: What is placed.
        votes: Placements of groups by name, or what makes them for a problem. What always votes besides: everything on
            the best single device, and each part where it ends earliest (`envs.guided.kernel.earliest_finish`).
        failing_s: The failing signal; by default `envs.placement_env.default_failing_s`.

    Raises:
        InputError: A placement voted for has the wrong shape, or a device that does not exist.
    """
    failing = default_failing_s(problem) if failing_s is None else failing_s
    tasks = of_groups(problem)
    traffic = Observer(problem).traffic
    picture = _picture(problem, tasks, traffic)
    given = votes(problem) if callable(votes) else votes or {}
    placements = {name: _checked(problem, name, placement) for name, placement in given.items()}
    single = _single_devices(problem)
    times = problem.evaluate(single).cost_s(failing)
    placements["the best single device"] = single[int(times.argmin())]
    placements["earliest finish"] = _earliest_finish(problem, picture)
    rows = np.stack(list(placements.values()))
    votes_s = problem.evaluate(rows).cost_s(failing)
    best = int(votes_s.argmin())
    guide = Guide(
        problem=problem,
        picture=picture._replace(votes=rows, reference=rows[best].copy()),
        names=tuple(placements),
        votes_s=votes_s,
        failing_s=failing,
        reference=rows[best],
        reference_s=float(votes_s[best]),
        traffic=traffic,
    )
    picture.reference_s[0] = guide.outlooks_s(rows[best][None])[0]
    return guide


def _checked(problem: PlacementProblem, name: str, placement: NDArray[np.integer]) -> NDArray[np.int64]:
    """A placement of groups, as it was voted for."""
    row = np.asarray(placement)
    if row.shape != (problem.num_groups,) or row.dtype.kind not in "iu":
        raise InputError(
            f"votes['{name}'] is {row.dtype} of shape {list(row.shape)}; give a device index for each of the "
            f"{problem.num_groups} groups"
        )
    if row.size and not 0 <= row.min() <= row.max() < problem.num_devices:
        raise InputError(
            f"votes['{name}'] names device {row.min()} to {row.max()}; there are devices 0 to {problem.num_devices - 1}"
        )
    return row.astype(np.int64)


def _single_devices(problem: PlacementProblem) -> NDArray[np.int64]:
    """``int64[D, G]``: everything on one device; what may not be there on the fastest where it may be."""
    fastest = np.where(problem.allowed, problem.group_time_s, np.inf).argmin(axis=1)
    devices = np.arange(problem.num_devices)[:, None]
    return np.where(problem.allowed.T, devices, fastest[None]).astype(np.int64)


def _earliest_finish(problem: PlacementProblem, picture: Picture) -> NDArray[np.int64]:
    placement = np.full((1, problem.num_groups), -1, dtype=np.int64)
    earliest_finish(picture, make_scratch(picture), placement, picture.memory_bytes.copy())
    return placement[0]


def _picture(
    problem: PlacementProblem,
    tasks: TaskGraph,
    traffic: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]],
) -> Picture:
    """Lay a problem out for the compiled loops; votes and reference are still to come."""
    groups, count = problem.num_groups, problem.num_devices
    time_s = _part_times_s(tasks)
    unit = tasks.unit.astype(np.int64)
    order = _most_urgent_first(problem, tasks, time_s)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    first = np.full(groups, len(order))
    np.minimum.at(first, unit, place)
    in_offsets, inputs = tasks.inputs
    routes = problem.cluster.routes
    per_byte = 1.0 / routes.bytes_per_s
    per_byte[np.arange(count), np.arange(count)] = 0.0
    offsets, near, read, sent = _neighbours(groups, traffic)
    ops = np.bincount(problem.groups.group_of_op, minlength=groups).astype(np.float64)
    work_s = float(np.where(problem.allowed, problem.group_time_s, np.inf).min(axis=1).sum())
    return Picture(
        order=order,
        unit=unit,
        time_s=time_s,
        source=(np.diff(in_offsets) == 0) & (time_s.sum(axis=1) == 0.0),
        in_offsets=in_offsets.astype(np.int64),
        inputs=inputs.astype(np.int64),
        makers=tasks.producer[inputs].astype(np.int64),
        units=unit[tasks.producer[inputs]],
        tensor_bytes=tasks.tensor_bytes.copy(),
        by_links=tasks.by_links.copy(),
        added_s=tasks.added_s.copy(),
        latency_s=np.array(routes.latency_s, dtype=np.float64),
        s_per_byte=per_byte,
        first_part=first.astype(np.int64),
        near_offsets=offsets,
        near=near,
        read_bytes=read,
        sent_bytes=sent,
        group_time_s=problem.group_time_s.copy(),
        group_ops=ops / ops.max(),
        resident_bytes=problem.group_resident_bytes.astype(np.float64),
        memory_bytes=problem.cluster.memory_bytes.astype(np.float64),
        allowed=problem.allowed.copy(),
        votes=np.zeros((0, groups), dtype=np.int64),
        reference=np.zeros(groups, dtype=np.int64),
        unit_s=np.array([work_s / count, work_s / groups]),
        reference_s=np.zeros(1),
    )


def _part_times_s(tasks: TaskGraph) -> NDArray[np.float64]:
    """``float64[K, D]``: what each part takes; where it may not be, as long as where it is slowest."""
    slowest_s = np.where(np.isfinite(tasks.time_s), tasks.time_s, 0.0).max(axis=1)
    return np.where(np.isfinite(tasks.time_s), tasks.time_s, slowest_s[:, None])


def _most_urgent_first(
    problem: PlacementProblem, tasks: TaskGraph, time_s: NDArray[np.float64]
) -> NDArray[np.int64]:  # fmt: skip
    """``int64[K]``: parts by the longest path from their start to the end of the step, each on its fastest device."""
    least_s = np.where(problem.allowed[tasks.unit], time_s, np.inf).min(axis=1)
    offsets, outputs = tasks.outputs
    rank = np.zeros(tasks.num_tasks)
    for part in range(tasks.num_tasks - 1, -1, -1):
        longest = 0.0
        for tensor in outputs[offsets[part] : offsets[part + 1]]:
            readers = tasks.consumers[tasks.consumer_offsets[tensor] : tasks.consumer_offsets[tensor + 1]]
            longest = max(longest, float(rank[readers].max(initial=0.0)))
        rank[part] = least_s[part] + longest
    # A part comes before its readers: it has no lower rank, and of equals the first in the graph's order is the first.
    return np.lexsort((np.arange(len(rank)), -rank)).astype(np.int64)


def _neighbours(
    groups: int, traffic: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """For each group those that it exchanges tensors with: offsets, the others, bytes read from and sent to them."""
    sender, reader, size = traffic
    key = np.concatenate([reader * groups + sender, sender * groups + reader])
    pair, inverse = np.unique(key, return_inverse=True)
    read = np.bincount(inverse[: len(size)], size, len(pair)).astype(np.float64)
    sent = np.bincount(inverse[len(size) :], size, len(pair)).astype(np.float64)
    offsets = np.searchsorted(pair, np.arange(groups + 1) * groups).astype(np.int64)
    return offsets, (pair % groups).astype(np.int64), read, sent
