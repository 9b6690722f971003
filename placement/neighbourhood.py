"""Search around the best placements so far, with moves that the policy proposes.

A few chains walk over placements by small moves; each accepts a move by Metropolis' rule at its own temperature, and
neighbours on the ladder of temperatures now and then exchange their placements (parallel tempering), so that there is
no schedule of cooling that would have to know when the search ends. A move gives a run of groups, along the program or
along a module family, one device; or swaps the devices of two groups. Where the run is, is drawn by the seconds that
each group adds to the critical path of the chain's placement; the policy has a share in that and in which device it
gets: its probabilities are read off for all groups at once, with the chain's placement as the devices before (teacher
forcing). The rest of the draws is uniform.

References:
    Metropolis et al., 1953; Geyer, "Markov chain Monte Carlo maximum likelihood", 1991, for the exchanges.
    Shaw, "Using constraint programming and local search methods to solve vehicle routing problems", 1998, for
    neighbourhoods that a model of the problem chooses.

Letters: ``C`` chains, ``G`` groups, ``D`` devices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.problem import Evaluation, PlacementProblem
from placement.critical_path import critical_group_s
from placement.reinforce import charged_s

LONGEST_RUN = 64
"""Runs have a length of about a power of 2, up to this."""

SHARE_SINGLE, SHARE_RUN, SHARE_EXTENSION = 0.5, 0.2, 0.2
"""Shares of the moves that give one group a drawn device, a run a drawn device, and a run the device of the group
before it; the rest swap two groups' devices."""

ROUNDS_A_TRACE = 32
"""The critical paths are those of the placements that the chains had at most this many rounds before."""

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Found:
    """What a stretch of the search came upon.

    Attributes:
        placements: ``int64[*, G]``, those that a chain accepted and that were better than all that it had seen.
        evaluation: Their evaluation.
        evaluations: Placements evaluated on the way.
    """

    placements: IntArray
    evaluation: Evaluation
    evaluations: int


class NeighbourhoodSearch:
    """The chains, and the random numbers that move them.

    Args:
        problem: What to place.
        temperatures: Of the chains, coldest first, as shares of the best step time.
        critical_share: Share of the draws of groups that follow the critical path.
        policy_share: Share of the other draws of groups, and of those of devices, that follow the policy.
        rng: Source of all draws; the search is its only user.
        threads: Cores to evaluate on; None for all. What is found does not depend on it.
    """

    def __init__(
        self,
        problem: PlacementProblem,
        *,
        temperatures: tuple[float, ...],
        critical_share: float,
        policy_share: float,
        rng: np.random.Generator,
        threads: int | None = 1,
    ) -> None:
        groups = problem.groups
        self.problem = problem
        self.placements: IntArray = np.empty((0, problem.num_groups), dtype=np.int64)  # [C, G]
        self._temperature = np.array(temperatures)  # [C]
        self._critical_share = critical_share
        self._policy_share = policy_share
        self._rng = rng
        self._threads = threads
        self._cost_s: FloatArray = np.empty(0)  # [C]
        self._best_s = np.inf
        self._orders = np.stack([groups.program_order, groups.family_order])  # [2, G]
        self._rank = np.argsort(self._orders, axis=1)  # [2, G], the inverse

    def start(self, placement: IntArray) -> None:
        """Put every chain on one placement, ``int64[G]``, that has been evaluated before."""
        chains = len(self._temperature)
        self.placements = np.tile(placement, (chains, 1))
        cost = self._charged_s(self.problem.evaluate(placement[None]))
        self._cost_s = np.tile(cost, chains)
        self._best_s = float(cost[0])

    def offer(self, placement: IntArray, cost_s: float) -> None:
        """Let the hottest chain go on from a placement that another source found, if it is better than its own."""
        if cost_s < self._cost_s[-1]:
            self.placements[-1] = placement
            self._cost_s[-1] = cost_s
            self._best_s = min(self._best_s, cost_s)

    def run(self, evaluations: int, probability: NDArray[np.float32] | None) -> Found:
        """Evaluate some moves, one a chain and round.

        Args:
            evaluations: How many in all.
            probability: ``float32[C, G, D]``, the policy's for each chain's placement; None for uniform moves. It is
                not renewed as the chains move on: a stretch is short.
        """
        chains = len(self._temperature)
        rounds = -(-evaluations // chains)
        guide = _Guide(self.problem.allowed, probability, self.placements, self._policy_share)
        kept: list[IntArray] = []
        times, peaks, feasible = [], [], []
        log_u = np.log(self._rng.random((rounds, chains)))
        left = evaluations
        for r in range(rounds):
            if self._critical_share > 0 and r % ROUNDS_A_TRACE == 0:
                guide.follow(self._critical_s(), self._critical_share)
            proposals = self._propose(guide)[:left]
            left -= len(proposals)
            evaluation = self.problem.evaluate(proposals, threads=self._threads)
            cost = self._charged_s(evaluation)
            mine = slice(0, len(proposals))
            better = cost < self._best_s
            if better.any():
                first = int(np.argmin(cost))
                self._best_s = float(cost[first])
                kept.append(proposals[first])
                times.append(evaluation.step_time_s[first])
                peaks.append(evaluation.peak_memory_bytes[first])
                feasible.append(evaluation.feasible[first])
            threshold = self._cost_s[mine] - log_u[r, mine] * self._temperature[mine] * self._best_s
            accepted = np.flatnonzero(cost <= threshold)
            self.placements[accepted] = proposals[accepted]
            self._cost_s[accepted] = cost[accepted]
            self._exchange()
        if not kept:
            nothing = Evaluation(np.empty(0), np.empty((0, self.problem.num_devices), np.int64), np.empty(0, np.bool_))
            return Found(np.empty((0, self.problem.num_groups), np.int64), nothing, evaluations)
        found = Evaluation(np.array(times), np.array(peaks), np.array(feasible))
        return Found(np.array(kept), found, evaluations)

    def state(self) -> dict[str, Any]:
        """All that changes, as arrays and plain values."""
        return {
            "placements": self.placements.copy(),
            "cost_s": self._cost_s.copy(),
            "best_s": self._best_s,
            "rng": self._rng.bit_generator.state,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        self.placements = np.array(state["placements"])
        self._cost_s = np.array(state["cost_s"])
        self._best_s = float(state["best_s"])
        self._rng.bit_generator.state = state["rng"]

    def _charged_s(self, evaluation: Evaluation) -> FloatArray:
        return charged_s(evaluation, self.problem.cluster.memory_bytes, failing_signal_s=0.0)

    def _critical_s(self) -> FloatArray:
        """``float64[C, G]``: seconds of each group on the critical path of each chain's placement."""
        traces = [self.problem.trace(placement) for placement in self.placements]
        return np.stack([critical_group_s(self.problem, trace) for trace in traces])

    def _propose(self, guide: _Guide) -> IntArray:
        """One move a chain: ``int64[C, G]``."""
        chains, groups = self.placements.shape
        each = np.arange(chains)
        kind, order = self._rng.random(chains), self._rng.integers(0, 2, chains)
        start = guide.draw_group(self._rng)  # [C]
        length = np.ceil(2.0 ** self._rng.uniform(0.0, np.log2(LONGEST_RUN), chains))
        length[kind < SHARE_SINGLE] = 1
        rank = self._rank[order]  # [C, G]
        first = rank[each, start]
        first = np.maximum(first - np.floor(length * self._rng.random(chains)).astype(np.int64), 0)
        run = (rank >= first[:, None]) & (rank < (first + length)[:, None])  # [C, G]
        device = guide.draw_device(run, self.placements, self._rng)
        extends = (kind >= SHARE_SINGLE + SHARE_RUN) & (kind < SHARE_SINGLE + SHARE_RUN + SHARE_EXTENSION)
        before = self.placements[each, self._orders[order, np.maximum(first - 1, 0)]]
        device = np.where(extends & (before != self.placements[each, start]), before, device)
        moved = np.where(run, device[:, None], self.placements)  # [C, G]
        swaps = np.flatnonzero(kind >= SHARE_SINGLE + SHARE_RUN + SHARE_EXTENSION)
        if len(swaps):
            a, b = start[swaps], self._rng.integers(0, groups, len(swaps))
            moved[swaps] = self.placements[swaps]
            moved[swaps, a], moved[swaps, b] = self.placements[swaps, b], self.placements[swaps, a]
        allowed = self.problem.allowed[np.arange(groups), moved]
        return np.where(allowed, moved, self.placements)

    def _exchange(self) -> None:
        """Neighbouring temperatures trade placements with the probability that keeps their distributions."""
        for low in range(int(self._rng.integers(0, 2)), len(self._temperature) - 1, 2):
            high = low + 1
            gain = (self._cost_s[low] - self._cost_s[high]) / self._best_s
            gain *= 1.0 / self._temperature[low] - 1.0 / self._temperature[high]
            if gain >= 0 or self._rng.random() < np.exp(gain):
                self.placements[[low, high]] = self.placements[[high, low]]
                self._cost_s[[low, high]] = self._cost_s[[high, low]]


class _Guide:
    """Draws the groups and devices of moves."""

    def __init__(
        self,
        allowed: NDArray[np.bool_],
        probability: NDArray[np.float32] | None,
        placements: IntArray,
        policy_share: float,
    ) -> None:
        chains = len(placements)
        uniform = allowed / allowed.sum(axis=1, keepdims=True)  # [G, D]
        self._movable = (allowed.sum(axis=1) > 1).astype(np.float64)  # [G]
        if not self._movable.any():
            self._movable += 1.0
        group = np.tile(_shares(self._movable[None]), (chains, 1))  # [C, G]
        self._device = np.broadcast_to(uniform, (chains, *uniform.shape))  # [C, G, D]
        if probability is not None:
            kept = np.take_along_axis(probability, placements[:, :, None], axis=2)[:, :, 0]
            doubt = _shares(np.maximum(1.0 - kept.astype(np.float64), 1e-9) * self._movable)
            group = (1.0 - policy_share) * group + policy_share * doubt
            self._device = (1.0 - policy_share) * uniform + policy_share * probability
        self._base = group
        self._group = np.cumsum(group, axis=1)

    def follow(self, critical_s: FloatArray, share: float) -> None:
        """Draw a share of the groups by their seconds on the critical path, ``float64[C, G]``."""
        critical = _shares(np.maximum(critical_s, 1e-12) * self._movable)
        self._group = np.cumsum((1.0 - share) * self._base + share * critical, axis=1)

    def draw_group(self, rng: np.random.Generator) -> IntArray:
        """``int64[C]``: a group of each chain's placement that is worth moving."""
        u = rng.random(len(self._group)) * self._group[:, -1]
        return np.minimum((self._group <= u[:, None]).sum(axis=1), self._group.shape[1] - 1)

    def draw_device(self, run: NDArray[np.bool_], placements: IntArray, rng: np.random.Generator) -> IntArray:
        """``int64[C]``: a device for each chain's run, by the mean probability over the run (``bool[C, G]``).

        A device that the whole run (of ``int64[C, G]`` placements) is on already would be no move, and is left out.
        """
        weight = np.einsum("cg,cgd->cd", run, self._device)
        first = placements[np.arange(len(run)), run.argmax(axis=1)]  # [C]
        settled = np.flatnonzero((~run | (placements == first[:, None])).all(axis=1))
        weight[settled, first[settled]] = 0.0
        total = np.cumsum(weight, axis=1)
        u = rng.random(len(run)) * total[:, -1]
        return np.minimum((total <= u[:, None]).sum(axis=1), weight.shape[1] - 1)


def _shares(weight: FloatArray) -> FloatArray:
    """``float64[C, G]`` with rows that sum to 1."""
    return weight / weight.sum(axis=1, keepdims=True)
