"""A search for the stages of a pipeline that learns, as it goes, which moves are worth an evaluation.

Simulated annealing over cuts, devices and, where lists are searched, the ways to make them. In each round some moves
are drawn; a linear softmax policy over what they would change (`FEATURES`) picks the one that is evaluated. It is
trained by REINFORCE (Williams, Machine Learning 8, 1992, doi:10.1007/BF00992696): the reward of an accepted move is
what it gains in units of the annealing's temperature, at most 1 either way, that of a rejected one 0; the baseline is
the running mean of rewards. `learn=False` picks among the same moves uniformly, for comparison.

The features need no simulation: the stages' work, what crosses between devices, and a rough step time, that of one
micro-batch and of ``M - 1`` more through the rank with most work. That time ranks stages far apart well and those near
the best badly, which is why it is an input here and not the score.

Letters: ``K`` segments, ``S`` stages, ``M`` micro-batches, ``C`` moves in a round, ``F`` features.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from envs.pipelines.segments import Segments
from graphs.errors import NoFeasiblePlacementError
from placement.placers.pipeline_stages import (
    PlacedStages,
    Way,
    cost,
    evaluate_way,
    heuristics,
    usable_devices,
    ways_of,
)

KINDS = ("cut", "cuts", "divide", "join", "device", "swap", "way")
"""Kinds of move."""

FEATURES = ("rough_time", "memory", "most_work", "imbalance", "crossing", "first", "last", *KINDS)
"""What the policy sees of a move: relative changes of the first seven, and its kind."""

MOVES = 8
"""``C``, moves that are drawn in a round."""

_START = -np.eye(2, len(FEATURES))
"""Weights at the start: what looks shorter is likelier; where memory lacks, what looks smaller."""

_UNIFORM = 0.25
"""The share of picks that are uniform, so that no move is ever given up."""

_RATE = 0.05
_MOST_WEIGHT = 5.0
_MOST_KEPT = 200_000


class _State(NamedTuple):
    """Stages, and how their lists come about."""

    cuts: tuple[int, ...]
    devices: tuple[int, ...]
    way: Way


class _Move(NamedTuple):
    kind: int
    state: _State


def search(
    segments: Segments,
    order: str,
    *,
    seed: int = 0,
    time_limit_s: float | None = None,
    evaluations: int = 2000,
    learn: bool = True,
    starts: Mapping[str, PlacedStages] | None = None,
) -> PlacedStages:
    """The best stages found.

    Args:
        segments: From `envs.pipelines.cuts.find_segments`.
        order: One of `envs.pipelines.orders.ORDERS`.
        seed: Seeds the moves.
        time_limit_s: Seconds; None for no limit. Only without one does the same seed give the same stages.
        evaluations: Rounds of the search.
        learn: Whether moves are picked by the policy, or uniformly.
        starts: What `placement.placers.pipeline_stages.heuristics` found for these segments; asked for where left out.

    Raises:
        InputError: The order is unknown.
        NoFeasiblePlacementError: Nothing fits.
    """
    found = heuristics(segments, order) if starts is None else starts
    best = min(found.values(), key=lambda placed: cost(placed, segments))
    rng = np.random.default_rng(seed)
    moves, policy = _Moves(segments, order, rng), _Policy(rng, learn=learn)
    began_s = time.perf_counter()
    current, old = _State(best.cuts, best.devices, best.way), cost(best, segments)
    known: dict[_State, tuple[bool, float]] = {current: old}
    for number in range(evaluations):
        spent = number / evaluations
        if time_limit_s is not None:
            spent = max(spent, (time.perf_counter() - began_s) / time_limit_s)
        if spent >= 1:
            break
        drawn = moves.draw(current)
        if not drawn:
            break  # there is one way to cut this step and no other device
        picked = policy.pick(drawn, moves.features(current, drawn) if learn else None, lacks=old[0])
        state = drawn[picked].state
        new = known.get(state)
        if new is None:
            pipeline = segments.pipeline(state.cuts, state.devices)
            tried = evaluate_way(segments, pipeline, state.cuts, state.devices, order, state.way)
            new = cost(tried, segments)
            if len(known) < _MOST_KEPT:
                known[state] = new
            if new < cost(best, segments):
                best = tried
        scale = 1.0 if old[0] else best.step_time_s  # what lacks memory is measured by how much
        warmth = 0.05 * scale * (1 - spent) ** 2 + 1e-12
        accepted = new <= old or (old[0] == new[0] and rng.random() < math.exp((old[1] - new[1]) / warmth))
        if learn:
            gained = 1.0 if new[0] < old[0] else (old[1] - new[1]) / warmth
            policy.learn(min(max(gained, -1.0), 1.0) if accepted else 0.0)
        if accepted:
            current, old = state, new
    if not best.feasible:
        short = best.peak_memory_bytes - segments.cluster.memory_bytes[list(dict.fromkeys(best.devices))]
        raise NoFeasiblePlacementError(
            f"no stages fit the memory of cluster '{segments.cluster.name}': {short.max() / 1e9:.2f} GB are short at "
            f"least with order '{order}'; take more micro-batches, or devices with more memory"
        )
    return best


class _Policy:
    """A softmax over moves, linear in their features, and its REINFORCE update."""

    def __init__(self, rng: np.random.Generator, *, learn: bool) -> None:
        self._rng = rng
        self._learns = learn
        self._weights = _START.copy()
        self._mean = 0.0
        self._lacks = False  # whether memory lacks where a move begins: then other weights count
        self._gradient: NDArray[np.float64] = np.zeros(len(FEATURES))  # of the log-probability of what was picked

    def pick(self, drawn: list[_Move], features: NDArray[np.float64] | None, *, lacks: bool = False) -> int:
        """The index of a move; `features` is ``float64[C, F]``, `lacks` whether memory does now."""
        if features is None:
            return int(self._rng.integers(len(drawn)))
        self._lacks = lacks
        scores = features @ self._weights[int(lacks)]
        chances = np.exp(scores - scores.max())
        chances /= chances.sum()
        mixed = (1 - _UNIFORM) * chances + _UNIFORM / len(drawn)
        picked = min(int(np.searchsorted(np.cumsum(mixed), self._rng.random())), len(drawn) - 1)
        own = (1 - _UNIFORM) * chances[picked] / mixed[picked]
        self._gradient = own * (features[picked] - chances @ features)
        return picked

    def learn(self, reward: float) -> None:
        """Make what was picked last likelier where the reward is above the mean."""
        self._weights[int(self._lacks)] += _RATE * (reward - self._mean) * self._gradient
        np.clip(self._weights, -_MOST_WEIGHT, _MOST_WEIGHT, out=self._weights)
        self._mean += 0.02 * (reward - self._mean)


class _Moves:
    """Moves from some stages to others, and what they change."""

    def __init__(self, segments: Segments, order: str, rng: np.random.Generator) -> None:
        self._order, self._rng = order, rng
        self._count = segments.num_segments
        self._micro_batches = segments.micro_batches
        self._usable = usable_devices(segments)
        sums = np.cumsum(segments.action_s.sum(axis=2), axis=1)
        self._work_s: list[list[float]] = np.pad(sums, ((0, 0), (1, 0))).tolist()
        routes = segments.cluster.routes
        both = (segments.crossing_bytes + segments.gradient_bytes).astype(float)
        self._crossing_bytes: list[float] = both.tolist()
        self._latency_s: list[list[float]] = (2 * routes.latency_s).tolist()
        self._bytes_per_s: list[list[float]] = routes.bytes_per_s.tolist()
        self._kept: list[int] = [0, *np.cumsum(segments.saved_bytes).tolist()]
        self._fixed: list[int] = [0, *np.cumsum(segments.fixed_bytes).tolist()]
        self._at_cut: list[int] = segments.crossing_bytes.tolist()
        self._room: list[float] = segments.cluster.memory_bytes.tolist()

    def draw(self, now: _State) -> list[_Move]:
        """Up to `MOVES` moves to other stages; none where no move was found."""
        drawn: list[_Move] = []
        for _ in range(4 * MOVES):
            move = self._one(now)
            if move is not None and move.state != now:
                drawn.append(move)
                if len(drawn) == MOVES:
                    break
        return drawn

    def _one(self, now: _State) -> _Move | None:
        rng = self._rng
        cuts, devices, way = list(now.cuts), list(now.devices), now.way
        chance = rng.random()
        if cuts and chance < 0.6:
            kind = self._move_cuts(cuts)
        elif chance < 0.75 and self._order != "interleaved":
            kind = self._divide_or_join(cuts, devices)
        elif self._order == "list" and chance < 0.82:
            kind = "device"
            devices[int(rng.integers(len(devices)))] = devices[int(rng.integers(len(devices)))]
        elif self._order == "list" and chance < 0.9:
            kind = "way"
            way = self._any_way(devices)
        else:
            kind = "swap"
            a, b = devices[int(rng.integers(len(devices)))], self._usable[int(rng.integers(len(self._usable)))]
            swap = {a: b, b: a}
            devices = [swap.get(device, device) for device in devices]
        if kind == "":
            return None
        if self._order == "list" and isinstance(way, str) and len(set(devices)) < len(devices):
            way = self._any_way(devices)
        return _Move(KINDS.index(kind), _State(tuple(cuts), tuple(devices), way))

    def _any_way(self, devices: list[int]) -> Way:
        ways = ways_of(self._order, len(devices), len(set(devices)))
        return ways[int(self._rng.integers(len(ways)))]

    def _move_cuts(self, cuts: list[int]) -> str:
        """Move one cut or a run of neighbouring ones by up to three segments, as far as there is room."""
        rng = self._rng
        first = int(rng.integers(len(cuts)))
        last = first if rng.random() < 0.7 else int(rng.integers(first, len(cuts)))
        low = (cuts[first - 1] + 1 if first else 1) - cuts[first]
        high = (cuts[last + 1] - 1 if last + 1 < len(cuts) else self._count - 1) - cuts[last]
        by = min(max((-3, -2, -1, 1, 2, 3)[int(rng.integers(6))], low), high)
        cuts[first : last + 1] = [cut + by for cut in cuts[first : last + 1]]
        return "cut" if first == last else "cuts"

    def _divide_or_join(self, cuts: list[int], devices: list[int]) -> str:
        """Give a part of a stage to a device that has none (under ``list`` to any), or a stage to the one before."""
        rng = self._rng
        free = [d for d in self._usable if self._order == "list" or d not in devices]
        taken = {0, *cuts}
        places = [k for k in range(1, self._count) if k not in taken]
        if free and places and rng.random() < 0.5:
            cut = places[int(rng.integers(len(places)))]
            number = sum(c < cut for c in cuts)
            cuts.insert(number, cut)
            devices.insert(number + int(rng.integers(2)), free[int(rng.integers(len(free)))])
            return "divide"
        if cuts:
            number = int(rng.integers(len(cuts)))
            del cuts[number]
            del devices[number + int(rng.integers(2))]
            return "join"
        return ""

    def features(self, now: _State, drawn: list[_Move]) -> NDArray[np.float64]:
        """``float64[C, F]``, see `FEATURES`."""
        before = self._figures(now)
        rows = np.zeros((len(drawn), len(FEATURES)))
        plain = len(before)
        for row, move in zip(rows, drawn, strict=True):
            row[:plain] = [
                new / old - 1 if old > 0 else 0.0 for new, old in zip(self._figures(move.state), before, strict=True)
            ]
            row[plain + move.kind] = 1.0
        rows[:, :plain] = np.clip(20 * rows[:, :plain], -2, 2)
        return rows

    def _figures(self, state: _State) -> tuple[float, ...]:
        """Rough step time and memory, most work of a rank, its squares, crossing, first and last stage's work."""
        bounds = [0, *state.cuts, self._count]
        stages_s = [
            self._work_s[d][b] - self._work_s[d][a]
            for d, (a, b) in zip(state.devices, itertools.pairwise(bounds), strict=True)
        ]
        of_rank, full = dict[int, float](), dict[int, float]()
        for s, (device, work_s) in enumerate(zip(state.devices, stages_s, strict=True)):
            of_rank[device] = of_rank.get(device, 0.0) + work_s
            a, b = bounds[s], bounds[s + 1]
            ahead = self._micro_batches if state.way == "gpipe" else min(len(stages_s) - s, self._micro_batches)
            need = self._fixed[b] - self._fixed[a] + self._micro_batches * (self._at_cut[a] + self._at_cut[b])
            need += ahead * (self._kept[b] - self._kept[a] + self._at_cut[a])
            full[device] = full.get(device, 0.0) + need / self._room[device]
        crossing_s = 0.0
        for (a, b), cut in zip(itertools.pairwise(state.devices), state.cuts, strict=True):
            crossing_s += self._latency_s[a][b] + self._crossing_bytes[cut] / self._bytes_per_s[a][b]
        most_s = max(of_rank.values())
        rough_s = sum(stages_s) + crossing_s + (self._micro_batches - 1) * most_s
        squares = sum(work_s * work_s for work_s in of_rank.values())
        return rough_s, max(full.values()), most_s, squares, crossing_s, stages_s[0], stages_s[-1]
