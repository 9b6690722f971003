"""Lower bounds for the step time of any pipeline of a step's segments, whatever its stages and devices.

Proofs, for segments ``k`` with times ``F``, ``I`` and ``W`` on their fastest device and ``M`` micro-batches:

- *Work*: every segment's actions and updates run somewhere. For any weights ``y`` of the devices that add up to 1, the
  step is at least ``sum_k min_d y_d (M (F + I + W) + U)``, as the busiest device is busy for no less than the weighted
  mean. The best weights are the dual of a linear programme that deals out segments in fractions.
- *Window*: one device does all that segment ``k`` does, ``M (F + I + W)``. It cannot begin before the first
  micro-batch has passed the segments before: ``sum_{j<k} F_j``. And after the last ``I`` of ``k`` that micro-batch has
  still to pass the segments before on its way back: ``sum_{j<k} I_j``; by then all ``F`` and ``I`` of ``k`` are done,
  its ``W`` need not be.
- *Path*: one micro-batch passes all segments forth and back.

Transfers are left out there, which only makes the bound lower. These hold for every order.

**One stage a rank.** Under ``gpipe``, ``1f1b`` and ``zb_h1`` each of at most ``D`` devices has one run of segments
``[a, b)``, and what it runs ahead and puts off is known. Stage ``s`` of ``S``, on a device of a given type, bounds the
step in two ways, each followed by the way back of its last micro-batch through the stages before, or by its updates:

- it waits until the first micro-batch has come to ``a``, then does all of its work;
- before its first backward pass it does at most as many forward passes as the order runs ahead, and it waits until that
  micro-batch has passed all segments, and has come back to ``b``; all other work comes after that.

``zb_h1`` puts ``W`` off by ``s`` micro-batches, so that those of the last ``s + 1`` need not be done before the way
back. A transfer at ``a`` and at ``b`` takes at least what it takes between the two closest devices; those at other cuts
are left out. A dynamic programme over ``S``, the segments and the types of devices used so far finds the cuts with the
smallest largest stage, so no pipeline is below that.

Letters: ``K`` segments, ``D`` devices, ``M`` micro-batches, ``S`` stages.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs.pipelines.segments import Segments

_ONE_A_RANK = ("gpipe", "1f1b", "zb_h1")

_MOST_WORK = 10**8
"""Sums that the programme makes at most; where types of devices are too many, all count as the fastest."""

Floats = NDArray[np.float64]


def lower_bound_s(segments: Segments, order: str = "list") -> float:
    """Seconds that no pipeline of these segments is below.

    Args:
        segments: From `envs.pipelines.cuts.find_segments`.
        order: One of `envs.pipelines.orders.ORDERS`; for ``list`` the bound holds for every order.
    """
    of_any_s = _of_any_order_s(segments)
    return max(of_any_s, _of_one_a_rank_s(segments, order)) if order in _ONE_A_RANK else of_any_s


def _usable(segments: Segments) -> list[int]:
    accelerators = [i for i, device in enumerate(segments.cluster.devices) if device.spec.kind != "cpu"]
    return accelerators or list(range(segments.cluster.num_devices))


def _of_any_order_s(segments: Segments) -> float:
    count, usable = segments.micro_batches, _usable(segments)
    forward, given, _ = segments.action_s[usable].min(axis=0).T
    whole = segments.action_s[usable].sum(axis=2).min(axis=0)  # F, I and W of a segment are on one device
    update = segments.update_s[usable].min(axis=0)
    both = segments.action_s[usable][:, :, :2].sum(axis=2).min(axis=0)
    work = count * segments.action_s[usable].sum(axis=2) + segments.update_s[usable]  # [D, K]
    before = np.concatenate([[0.0], np.cumsum(forward)[:-1]])
    back = np.concatenate([[0.0], np.cumsum(given)[:-1]])
    return float(
        max(
            _shared_s(work),
            (before + count * whole + update).max(),
            (before + count * both + back).max(),
            forward.sum() + given.sum(),
        )
    )


def _shared_s(work: Floats) -> float:
    """What the busiest device is busy for at least, ``float64[D, K]`` the seconds of each segment on each device."""
    from scipy.optimize import linprog

    devices, count = work.shape
    shares = np.full(devices, 1.0 / devices)
    if devices > 1 and not (work == work[0]).all():
        # Least t with x >= 0, sum_d x[d, k] = 1, sum_k work[d, k] x[d, k] <= t.
        scale = float(work.max())
        busy = np.concatenate(
            [np.kron(np.eye(devices), np.ones(count)) * (work / scale).ravel(), -np.ones((devices, 1))], 1
        )
        dealt = np.concatenate([np.kron(np.ones(devices), np.eye(count)), np.zeros((count, 1))], 1)
        aim = np.concatenate([np.zeros(devices * count), [1.0]])
        found = linprog(aim, A_ub=busy, b_ub=np.zeros(devices), A_eq=dealt, b_eq=np.ones(count), method="highs")
        if found.success and (weights := np.maximum(-found.ineqlin.marginals, 0.0)).sum() > 0:
            shares = weights / weights.sum()  # whatever they are, what follows is a bound
    return float((shares[:, None] * work).min(axis=0).sum())


def _of_one_a_rank_s(segments: Segments, order: str) -> float:
    """The smallest largest stage over all numbers of stages, cuts and devices."""
    usable, count = _usable(segments), segments.num_segments
    columns = np.concatenate([segments.action_s[usable], segments.update_s[usable, :, None]], axis=2)  # [D, K, 4]
    types, number_of = np.unique(columns, axis=0, return_counts=True)
    there: list[int] = number_of.tolist()
    most = min(len(usable), count)
    if np.prod([n + 1.0 for n in there]) * len(there) * most * (count + 1) ** 2 > _MOST_WORK:
        types, there = types.min(axis=0, keepdims=True), [len(usable)]
    stage = _Stage(segments, order, usable)
    best_s = np.inf
    for stages in range(1, most + 1):
        begin = np.full(count + 1, np.inf)
        begin[0] = 0.0
        ends = {(0,) * len(there): begin}  # by devices used of each type: float64[K + 1], the smallest largest stage
        for s in range(stages):
            costs = [stage.seconds(row, s, stages) for row in types]
            after: dict[tuple[int, ...], Floats] = {}
            for used, so_far in ends.items():
                for t, cost in enumerate(costs):
                    if used[t] == there[t]:
                        continue
                    key = (*used[:t], used[t] + 1, *used[t + 1 :])
                    found = np.maximum(so_far[:, None], cost).min(axis=0)
                    after[key] = np.minimum(after[key], found) if key in after else found
            ends = after
        best_s = min(best_s, *(float(row[-1]) for row in ends.values()))
    return best_s


class _Stage:
    """What a stage bounds the step by, for all runs of segments at once."""

    def __init__(self, segments: Segments, order: str, usable: list[int]) -> None:
        self.order, self.micro_batches = order, segments.micro_batches
        times = segments.action_s[usable]
        back = times[:, :, 1] if order == "zb_h1" else times[:, :, 1] + times[:, :, 2]
        count = segments.num_segments
        self.before = _sums(times[:, :, 0].min(axis=0))  # [K + 1], of forward passes
        self.behind = _sums(back.min(axis=0))
        routes, pairs = segments.cluster.routes, [(a, b) for a in usable for b in usable if a != b]

        def crossing_s(sizes: NDArray[np.int64]) -> Floats:
            """``float64[K + 1]``: between the closest devices; 0 at both ends."""
            crossed: Floats = np.full(count + 1, np.inf)
            for a, b in pairs:
                crossed = np.minimum(crossed, routes.latency_s[a, b] + sizes / routes.bytes_per_s[a, b])
            crossed[[0, count]] = 0.0
            return crossed

        self.forth_s, self.back_s = crossing_s(segments.crossing_bytes), crossing_s(segments.gradient_bytes)
        # What the first stage has still to do after its last gradient of inputs: some of it is in every first stage.
        last = segments.update_s[usable, 0] + (times[:, 0, 2] if order == "zb_h1" else 0.0)
        self.tail_s = self.back_s + self.behind + float(last.min())
        self.is_run = np.tri(count + 1, k=-1, dtype=np.bool_).T  # [K + 1, K + 1], of its first segment and its end

    def seconds(self, columns: Floats, number: int, stages: int) -> Floats:
        """``float64[K + 1, K + 1]`` by first segment and end of stage `number`; infinity for what is no run.

        Args:
            columns: ``float64[K, 4]``: forward, input gradient, weight gradient and update on its device.
            number: ``s``.
            stages: ``S``.
        """
        forward, given, weight, update = ((sums := _sums(row))[None, :] - sums[:, None] for row in columns.T)
        total = self.micro_batches
        ahead = total if self.order == "gpipe" else min(stages - number, total)
        begins_s = (self.before + self.forth_s)[:, None]
        outside = self.before[-1] - (self.before[None, :] - self.before[:, None])
        returns_s = (self.forth_s[:, None] + outside + forward) + (
            self.forth_s + self.back_s + (self.behind[-1] - self.behind)
        )[None, :]
        tail_s = np.where(np.arange(len(self.tail_s)) > 0, self.tail_s, 0.0)[:, None]
        work, rest = total * forward, (total - ahead) * forward
        start_s = np.maximum(begins_s + work, returns_s + rest)
        if self.order == "zb_h1":
            done = total * given + max(total - 1 - number, 0) * weight
            least_s = np.maximum(start_s + done + tail_s, start_s + total * (given + weight) + update)
        else:
            least_s = start_s + total * (given + weight) + np.maximum(tail_s, update)
        least_s[~self.is_run] = np.inf
        return least_s


def _sums(values: Floats) -> Floats:
    """Running sums from 0, one more than there are values."""
    return np.concatenate([[0.0], np.cumsum(values)])
