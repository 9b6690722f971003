"""A search for the stages of a pipeline that learns, as it goes, which moves are worth an evaluation.

Simulated annealing over cuts, devices and, where lists are searched, the ways to make them, from the best that placers
without a search find; for lists also from stages that go over the devices several times. In each round some moves
are drawn; a linear softmax policy over what they would change (`FEATURES`) picks the one that is evaluated. It is
trained by REINFORCE (Williams, Machine Learning 8, 1992, doi:10.1007/BF00992696): the reward of an accepted move is
what it gains in units of the annealing's temperature, at most 1 either way, that of a rejected one 0; the baseline is
the running mean of rewards. `learn=False` evaluates one drawn move a round, for comparison.

The features need no simulation: the stages' work, what crosses between devices, and a rough step time, that of one
micro-batch and of ``M - 1`` more through the rank with most work. That time ranks stages far apart well and those near
the best badly, which is why it is an input here and not the score.

Letters: ``K`` segments, ``S`` stages, ``M`` micro-batches, ``C`` moves in a round, ``F`` features.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from envs.pipelines.segments import Segments
from graphs.errors import NoFeasiblePlacementError
from placement.placers.pipeline_stages import (
    PlacedStages,
    Way,
    cost,
    evaluate,
    evaluate_way,
    folded,
    heuristics,
    usable_devices,
    ways_of,
)
from placement.placers.stage_figures import figures

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

_ONE_A_RANK = 0.4
"""The share of a search for lists that looks at one stage a rank only: the space of all others is far larger."""

_ON_STARTS = 0.3
"""The share of the time that goes to stages that go over the devices several times, to begin with."""

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
    clock: Callable[[], float] = time.perf_counter,
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
        clock: What counts the seconds; `time.process_time` is fair where the machine has other work.

    Raises:
        InputError: The order is unknown.
        NoFeasiblePlacementError: Nothing fits.
    """
    found = heuristics(segments, order) if starts is None else starts
    best = min(found.values(), key=lambda placed: cost(placed, segments))
    rng = random.Random(seed)
    moves, policy = _Moves(segments, order, rng), _Policy(rng)
    if learn:
        moves.figures([_State(best.cuts, best.devices, best.way)])  # compiles, which is no part of the search
    began_s = clock()
    for cuts, devices in folded(segments) if order == "list" else ():
        if time_limit_s is not None and clock() - began_s > _ON_STARTS * time_limit_s:
            break
        best = min(best, evaluate(segments, cuts, devices, order), key=lambda placed: cost(placed, segments))
    folds = order == "list" and len(set(best.devices)) < len(best.devices)
    current, old = _State(best.cuts, best.devices, best.way), cost(best, segments)
    known: dict[_State, tuple[bool, float]] = {current: old}
    for number in range(evaluations):
        spent = number / evaluations
        if time_limit_s is not None:
            spent = max(spent, (clock() - began_s) / time_limit_s)
        if spent >= 1:
            break
        moves.several = folds or (order == "list" and spent >= _ONE_A_RANK)
        drawn = moves.draw(current, MOVES if learn else 1)
        if not drawn:
            break  # there is one way to cut this step and no other device
        picked = policy.pick(moves.features(current, drawn), lacks=old[0]) if learn else 0
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
        memories = segments.cluster.memories
        short = memories.used_by(list(dict.fromkeys(best.devices)), best.peak_memory_bytes) - memories.limit_bytes
        raise NoFeasiblePlacementError(
            f"no stages fit the memory of cluster '{segments.cluster.name}': {short.max() / 1e9:.2f} GB are short at "
            f"least with order '{order}'; take more micro-batches, or devices with more memory"
        )
    return best


class _Policy:
    """A softmax over moves, linear in their features, and its REINFORCE update."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._weights = _START.copy()
        self._mean = 0.0
        self._lacks = False  # whether memory lacks where a move begins: then other weights count
        self._gradient: NDArray[np.float64] = np.zeros(len(FEATURES))  # of the log-probability of what was picked

    def pick(self, features: NDArray[np.float64], *, lacks: bool = False) -> int:
        """The index of a move; `features` is ``float64[C, F]``, `lacks` whether memory does now."""
        self._lacks = lacks
        scores = features @ self._weights[int(lacks)]
        chances = np.exp(scores - scores.max())
        chances /= chances.sum()
        mixed = (1 - _UNIFORM) * chances + _UNIFORM / len(features)
        picked = min(int(np.searchsorted(np.cumsum(mixed), self._rng.random())), len(features) - 1)
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

    def __init__(self, segments: Segments, order: str, rng: random.Random) -> None:
        self._order, self._rng = order, rng
        self.several = False  # whether a device may have several stages
        self._count = segments.num_segments
        self._usable = usable_devices(segments)
        routes = segments.cluster.routes

        def sums(values: NDArray[Any]) -> NDArray[np.float64]:
            return np.pad(np.cumsum(values, axis=-1), [(0, 0)] * (values.ndim - 1) + [(1, 0)]).astype(np.float64)

        self._columns = (
            sums(segments.action_s.sum(axis=2)),
            sums(segments.saved_bytes),
            sums(segments.fixed_bytes),
            segments.crossing_bytes.astype(np.float64),
            (segments.crossing_bytes + segments.gradient_bytes).astype(np.float64),
            np.ascontiguousarray(routes.latency_s),
            np.ascontiguousarray(routes.bytes_per_s),
            segments.cluster.memory_bytes.astype(np.float64),
            segments.micro_batches,
        )

    def draw(self, now: _State, count: int = MOVES) -> list[_Move]:
        """So many moves to other stages, or fewer; none where no move was found."""
        drawn: list[_Move] = []
        for _ in range(24 + count):
            move = self._one(now)
            if move is not None and move.state != now:
                drawn.append(move)
                if len(drawn) == count:
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
        elif self.several and chance < 0.82:
            kind = "device"
            devices[rng.randrange(len(devices))] = devices[rng.randrange(len(devices))]
        elif self._order == "list" and chance < 0.9:
            kind = "way"
            way = self._any_way(devices)
        else:
            kind = "swap"
            a, b = devices[rng.randrange(len(devices))], self._usable[rng.randrange(len(self._usable))]
            swap = {a: b, b: a}
            devices = [swap.get(device, device) for device in devices]
        if kind == "":
            return None
        if self._order == "list" and isinstance(way, str) and len(set(devices)) < len(devices):
            way = self._any_way(devices)
        return _Move(KINDS.index(kind), _State(tuple(cuts), tuple(devices), way))

    def _any_way(self, devices: list[int]) -> Way:
        ways = ways_of(self._order, len(devices), len(set(devices)))
        return ways[self._rng.randrange(len(ways))]

    def _move_cuts(self, cuts: list[int]) -> str:
        """Move one cut or a run of neighbouring ones by up to three segments, as far as there is room."""
        rng = self._rng
        first = rng.randrange(len(cuts))
        last = first if rng.random() < 0.7 else rng.randrange(first, len(cuts))
        low = (cuts[first - 1] + 1 if first else 1) - cuts[first]
        high = (cuts[last + 1] - 1 if last + 1 < len(cuts) else self._count - 1) - cuts[last]
        by = min(max((-3, -2, -1, 1, 2, 3)[rng.randrange(6)], low), high)
        cuts[first : last + 1] = [cut + by for cut in cuts[first : last + 1]]
        return "cut" if first == last else "cuts"

    def _divide_or_join(self, cuts: list[int], devices: list[int]) -> str:
        """Give a part of a stage to a device that has none, or to any, or give a stage to the one before."""
        rng = self._rng
        free = [d for d in self._usable if self.several or d not in devices]
        taken = {0, *cuts}
        places = [k for k in range(1, self._count) if k not in taken]
        if free and places and rng.random() < 0.5:
            cut = places[rng.randrange(len(places))]
            number = sum(c < cut for c in cuts)
            cuts.insert(number, cut)
            devices.insert(number + rng.randrange(2), free[rng.randrange(len(free))])
            return "divide"
        if cuts:
            number = rng.randrange(len(cuts))
            del cuts[number]
            del devices[number + rng.randrange(2)]
            return "join"
        return ""

    def features(self, now: _State, drawn: Sequence[_Move]) -> NDArray[np.float64]:
        """``float64[C, F]``, see `FEATURES`."""
        found = self.figures([now, *(move.state for move in drawn)])
        before = found[0]
        plain = found.shape[1]
        rows = np.zeros((len(drawn), len(FEATURES)))
        changed = found[1:] / np.where(before > 0, before, np.inf) - (before > 0)
        rows[:, :plain] = np.minimum(np.maximum(20 * changed, -2.0), 2.0)
        rows[np.arange(len(drawn)), [plain + move.kind for move in drawn]] = 1.0
        return rows

    def figures(self, states: Sequence[_State]) -> NDArray[np.float64]:
        """``float64[C, 7]``, of which the features are the changes, in their order."""
        most = max(len(state.devices) for state in states)
        end = [self._count] * (most + 1)
        bounds = np.array([[0, *state.cuts, *end[: most - len(state.cuts)]] for state in states])
        devices = np.array([[*state.devices, *[0] * (most - len(state.devices))] for state in states])
        counts = np.array([len(state.devices) for state in states])
        keeps_all = np.array([state.way == "gpipe" for state in states])
        return figures(bounds, devices, counts, keeps_all, *self._columns)
