"""The compiled part of `placement.move_search`: a chain of moves, the simulator called after each, and what it learns.

One call walks a chain of placements through a number of moves and never returns to Python between them, so two chains
use two cores. Nothing is allocated here. `field`, `chain`, `traced` and `paths` are `envs.compiling.Packed` tuples of
`placement.move_search.field`, `chain` and `paths`.

Letters: ``N`` ops, ``U`` units, ``D`` devices, ``F`` features of a move, ``K`` kinds of move.
"""

from __future__ import annotations

import numpy as np

from envs.compiling import call_simulator, called, compiled, inlined
from placement.move_search import paths as longest_paths
from placement.move_search.critical import sum_up
from placement.placers.best import INFEASIBLE_RATIO

CRITICAL, TRANSFER, WAITED, DELAYED, AFFINITY, LOAD, SLOWER, ALIKE, APART, REJECTED, POLICY = range(11)
"""Features of moving a unit to a device, see `_features`."""
NUM_FEATURES = 11
FEATURE_NAMES = (
    "critical", "transfer", "waited", "delayed", "affinity", "load", "slower", "alike", "apart", "rejected", "policy",
)  # fmt: skip

SINGLE, SHORT_RUN, RUN, LONG_RUN, SEGMENT, SWAP, BOUNDARY, COMB = range(8)
"""Kinds of move, see `_select`."""
NUM_KINDS = 8
_LEAST_LENGTH = np.array([1, 2, 5, 17, 1, 1, 1, 2])
_MOST_LENGTH = np.array([1, 4, 16, 64, 64, 1, 16, 16])

(
    STEP, MISSING, COST, BEST_STEP, BEST_MISSING, BEST, REFERENCE, BASELINE, LEARNING_RATE, KIND_RATE, UNIFORM_SHARE,
) = range(11)  # fmt: skip
"""What `Chain.scalars` holds: step time in seconds, missing memory (`placement.placers.best.missing_share`) and cost in
seconds of the chain's placement; the same of the best it met; what costs are charged by in this call, in seconds; the
running mean of the rewards; learning rates of the weights and of the kinds; the share of moves drawn uniformly."""
NUM_SCALARS = 11

EVALUATIONS, ACCEPTED, TRACED = range(3)
"""What `Chain.counts` holds: simulations and accepted moves so far; and one of the following."""
UNKNOWN, RESTORED, SIMULATED, SUMMED = range(4)
"""Of the chain's placement: nothing is known; it was simulated and counted before, but its trace is not at hand; the
workspace holds its trace; what the features need was summed up from that."""
NUM_COUNTS = 3

_UNIFORM_KINDS = 0.5
"""Share of the moves drawn uniformly whose kind is, too: learning may not give up a kind that will be needed later."""

_BUSY_ERROR = 1e-7
"""More than rounding can add, as a share, to sums of op times that a block of moves keeps up to date."""

_WEIGHT_LIMIT = 8.0
_REFRESH = 24
"""Rejections after which a chain that stands still draws by renewed shares."""
_ACTIVE_AN_ACCEPTANCE = 200
"""Active units for each acceptance that the shares may be old: renewing them costs as much as simulating many ops."""


@inlined
def _random(rng):
    """A float64 in [0, 1): SplitMix64 (Steele, Lea and Flood, 2014, doi:10.1145/2660193.2660195)."""
    rng[0] += np.uint64(0x9E3779B97F4A7C15)
    z = rng[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return np.float64(z >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@called
def _features(field, chain, unit, step_s):
    """Fill `Chain.x` ``[D, F]`` for moving a unit to each device; shares of the step time, brought to about -3 to 3."""
    x, near_on_s, placed, busy_s = chain.x, chain.near_on_s, chain.placed, chain.busy_s
    near_offsets, near, near_s = field.near_offsets, field.near, field.near_s
    orders, rank, time_s, log_time = field.orders, field.rank, field.time_s, field.log_time
    transfer_s, rejected, log_probability = chain.transfer_s, chain.rejected, chain.log_probability
    here, devices, count = placed[unit], len(near_on_s), len(placed)
    critical = 3.0 * np.sqrt(chain.critical_s[unit] / step_s)
    waited = 3.0 * np.sqrt(chain.waited_s[unit] / step_s)
    delayed = 3.0 * np.sqrt(chain.delayed_s[unit] / step_s)
    near_on_s[:] = 0.0
    for i in range(near_offsets[unit], near_offsets[unit + 1]):
        near_on_s[placed[near[i]]] += near_s[i]
    for d in range(devices):
        x[d, ALIKE] = 0.0
    for o in range(2):
        at = rank[o, unit]
        if at > 0:
            x[placed[orders[o, at - 1]], ALIKE] += 0.5
        if at + 1 < count:
            x[placed[orders[o, at + 1]], ALIKE] += 0.5
    for d in range(devices):
        x[d, CRITICAL], x[d, WAITED], x[d, DELAYED] = critical, waited, delayed
        x[d, TRANSFER] = 3.0 * np.sqrt(transfer_s[unit, d] / step_s)
        x[d, AFFINITY] = min(max((near_on_s[d] - near_on_s[here]) / (0.02 * step_s), -3.0), 3.0)
        x[d, LOAD] = min(max((busy_s[here] - busy_s[d] - time_s[unit, d]) / (0.25 * step_s), -2.0), 2.0)
        x[d, SLOWER] = min(max(log_time[unit, d] - log_time[unit, here], -3.0), 3.0)
        x[d, APART] = x[here, ALIKE]
        x[d, REJECTED] = 0.5 * min(rejected[unit, d], np.float32(8.0))
        x[d, POLICY] = min(max(log_probability[unit, d] - log_probability[unit, here], -3.0), 3.0)


@called
def refresh(field, chain, step_s):
    """Fill `shares`, the running sum of the softmax over moves of `active` units, and `expected`, their mean features.

    A unit is active where it adds to the critical path, waits on it or lets others wait. Returns how many there are.
    """
    shares, expected, x, placed, allowed = chain.shares, chain.expected, chain.x, chain.placed, field.allowed
    critical_s, transfer_s, waited_s, delayed_s = chain.critical_s, chain.transfer_s, chain.waited_s, chain.delayed_s
    weights = chain.weights
    units, devices = allowed.shape
    count, total = 0, 0.0
    expected[:] = 0.0
    for u in range(units):
        spent_s = critical_s[u] + waited_s[u] + delayed_s[u]
        for d in range(devices):
            spent_s += transfer_s[u, d]
        if spent_s <= 0.0:
            continue
        _features(field, chain, u, step_s)
        for d in range(devices):
            if allowed[u, d] and placed[u] != d:
                logit = 0.0
                for f in range(NUM_FEATURES):
                    logit += weights[f] * x[d, f]
                share = np.exp(min(logit, 200.0))
                total += share
                for f in range(NUM_FEATURES):
                    expected[f] += share * x[d, f]
            shares[count * devices + d] = total
        chain.active[count] = u
        count += 1
    for f in range(NUM_FEATURES):
        expected[f] /= max(total, 1e-300)
    return count


@inlined
def _first_above(rising, count, value):
    """The first index, of the first `count` entries of a rising array, whose entry is above a value."""
    low, high = 0, count - 1
    while low < high:
        middle = (low + high) // 2
        if rising[middle] > value:
            high = middle
        else:
            low = middle + 1
    return low


@inlined
def _take(moved, kept, count, unit, device, placed, allowed):
    """Move a unit, if it may be there, and remember where it was."""
    if allowed[unit, device] and placed[unit] != device:
        moved[count] = unit
        kept[count] = placed[unit]
        placed[unit] = device
        return count + 1
    return count


@called
def _select(field, chain, kind, unit, device, order, u1, u2):
    """Apply a move to `Chain.placed`; returns how many units it moves, which are in `moved`, and were at `kept`.

    A run gives some units around the drawn one, along one of the two orders, the drawn device; a segment all the
    units around it that are on its device; a swap trades devices with another unit; a boundary gives the units up to
    the next change of device along the order what is behind the change.
    """
    moved, kept, placed = chain.moved, chain.kept, chain.placed
    allowed, orders, rank = field.allowed, field.orders, field.rank
    count, units = np.int64(0), len(placed)  # not a literal, for which `_take` would be compiled once more
    here, at = placed[unit], rank[order, unit]
    if kind == SWAP:
        # The other unit is the nearest on that device along the order, from a drawn place on.
        start = int(u1 * units)
        for i in range(units):
            other = orders[order, (start + i) % units]
            if placed[other] == device and allowed[other, here]:
                count = _take(moved, kept, count, other, here, placed, allowed)
                break
        return _take(moved, kept, count, unit, device, placed, allowed)
    if kind == COMB:
        stride = 2 + int(u1 * (allowed.shape[1] - 1))
        length = 2 + int(u2 * 15)
        for i in range(length):
            if at + i * stride < units:
                count = _take(moved, kept, count, orders[order, at + i * stride], device, placed, allowed)
        return count
    low, high = at, at + 1
    if kind in (SEGMENT, BOUNDARY):
        most = _MOST_LENGTH[kind]
        if kind == SEGMENT or u1 < 0.5:
            while low > 0 and at - low < most and placed[orders[order, low - 1]] == here:
                low -= 1
        if kind == SEGMENT or u1 >= 0.5:
            while high < units and high - at <= most and placed[orders[order, high]] == here:
                high += 1
        if kind == BOUNDARY:
            if u1 < 0.5 and low > 0:
                device = placed[orders[order, low - 1]]
            elif u1 >= 0.5 and high < units:
                device = placed[orders[order, high]]
    elif kind != SINGLE:
        least, most = _LEAST_LENGTH[kind], _MOST_LENGTH[kind]
        length = least + int(u1 * (most - least + 1))
        low = max(at - int(u2 * length), 0)
        high = min(low + length, units)
    for i in range(low, high):
        count = _take(moved, kept, count, orders[order, i], device, placed, allowed)
    return count


@inlined
def _simulate(simulator, work, chain, limit_s):
    """Simulate the chain's placement: fill `Chain.step_time_s` and `Chain.peak`."""
    chain.bounds_s[0] = limit_s
    call_simulator(simulator, work, chain.simulated, chain.bounds_s, chain.step_time_s, chain.peak)


@inlined
def _missing_share(peak, memory_bytes, memory_offsets, memory_users):
    """As `placement.placers.best.missing_share`, of one placement that is everywhere where it may be."""
    missing = 0.0
    for m in range(len(memory_bytes)):
        used = 0
        for i in range(memory_offsets[m], memory_offsets[m + 1]):
            used += peak[memory_users[i]]
        missing += max(used - memory_bytes[m], 0) / max(memory_bytes[m], 1)
    return missing


@inlined
def _charged_s(step_s, missing, reference_s):
    """As `placement.placers.best.charged_s`."""
    return step_s if missing == 0.0 else max(step_s, reference_s) * (INFEASIBLE_RATIO + missing)


@called
def _learn(chain, kind, device, reward):
    """One step of REINFORCE on the softmax over moves and on the softmax over kinds of move."""
    weights, kinds, kind_share, x, expected = chain.weights, chain.kinds, chain.kind_share, chain.x, chain.expected
    learning_rate, kind_rate = chain.scalars[LEARNING_RATE], chain.scalars[KIND_RATE]
    advantage = reward - chain.scalars[BASELINE]
    for f in range(NUM_FEATURES):
        weight = weights[f] + learning_rate * advantage * (x[device, f] - expected[f])
        weights[f] = min(max(weight, -_WEIGHT_LIMIT), _WEIGHT_LIMIT)
    for k in range(NUM_KINDS):
        kinds[k] += kind_rate * advantage * ((1.0 if k == kind else 0.0) - kind_share[k])
        kinds[k] = min(max(kinds[k], -3.0), 3.0)


@inlined
def _draw_kind(kinds, kind_share, u):
    """Draw a kind of move by the softmax of `kinds`, whose probabilities are left in `kind_share`."""
    total = 0.0
    for k in range(NUM_KINDS):
        kind_share[k] = np.exp(kinds[k])
        total += kind_share[k]
    drawn, below = NUM_KINDS - 1, 0.0
    for k in range(NUM_KINDS):
        kind_share[k] /= total
        if below <= u and u < below + kind_share[k]:
            drawn = k
        below += kind_share[k]
    return drawn


@compiled
def walk(simulator, work, in_turn, field, chain, traced, paths, moves, temperature_s):
    """Walk a chain through `moves` moves at a temperature in seconds.

    `simulator` and `work` are addresses (`envs.compiling.call_simulator`), `in_turn` says whether one thing happens
    after another, under ``sequential``.
    """
    scalars, counts, rng, step_time_s = chain.scalars, chain.counts, chain.rng, chain.step_time_s
    units, devices = field.allowed.shape
    shares = chain.shares
    count_active, still, accepted = -1, 0, 0
    # What is known of the placement may be some moves old. A block of moves begins with what is true.
    counts[TRACED] = min(counts[TRACED], RESTORED)
    # A better feasible step may be known by now than when the chain walked before.
    reference_s = scalars[REFERENCE]
    scalars[COST] = _charged_s(scalars[STEP], scalars[MISSING], reference_s)
    scalars[BEST] = _charged_s(scalars[BEST_STEP], scalars[BEST_MISSING], reference_s)
    # Added up anew, so that rounding does not depend on how long the chain has walked.
    chain.busy_s[:] = 0.0
    for u in range(units):
        chain.busy_s[chain.placed[u]] += field.time_s[u, chain.placed[u]]
    follows = longest_paths.begin(paths, chain.op_device[0], scalars[COST])
    learns = scalars[UNIFORM_SHARE] < 1.0  # else nobody asks for the critical path
    for _ in range(moves):
        if counts[TRACED] <= RESTORED:
            _simulate(simulator, work, chain, np.inf)
            counts[EVALUATIONS] += counts[TRACED] == UNKNOWN
            counts[TRACED] = SIMULATED
            scalars[STEP] = step_time_s[0]
            scalars[MISSING] = _missing_share(
                chain.peak[0], field.memory_bytes, field.memory_offsets, field.memory_users
            )
            scalars[COST] = _charged_s(scalars[STEP], scalars[MISSING], reference_s)
        if learns and counts[TRACED] == SIMULATED:
            # The workspace still holds the trace of the placement that was accepted last.
            sum_up(field, chain, traced, in_turn)
            counts[TRACED] = SUMMED
            count_active = -1
            accepted = 0
        if learns and (count_active < 0 or still >= _REFRESH):
            still = 0
            count_active = refresh(field, chain, scalars[STEP])
        total = 0.0
        if count_active > 0:
            total = shares[count_active * devices - 1]
        uniform = _random(rng) < scalars[UNIFORM_SHARE] or total <= 0.0
        kind = _draw_kind(chain.kinds, chain.kind_share, _random(rng))
        u = _random(rng)
        if uniform:
            if _random(rng) < _UNIFORM_KINDS:
                kind = min(int(_random(rng) * NUM_KINDS), NUM_KINDS - 1)
            index = min(int(u * len(shares)), len(shares) - 1)
            unit = index // devices
        else:
            index = _first_above(shares, count_active * devices, u * total)
            unit = chain.active[index // devices]
        device = index % devices
        if not field.allowed[unit, device] or chain.placed[unit] == device:
            continue
        if not uniform:
            _features(field, chain, unit, scalars[STEP])
        order = 0 if _random(rng) < 0.5 else 1
        count = _select(field, chain, kind, unit, device, order, _random(rng), _random(rng))
        if count == 0:
            continue
        for i in range(count):
            moved = chain.moved[i]
            there = chain.placed[moved]
            chain.busy_s[chain.kept[i]] -= field.time_s[moved, chain.kept[i]]
            chain.busy_s[there] += field.time_s[moved, there]
            for j in range(field.op_offsets[moved], field.op_offsets[moved + 1]):
                chain.op_device[0, field.ops_of_unit[j]] = there
        # Metropolis' rule with its random number drawn first: what is proven slower than that is not simulated on.
        limit_s = scalars[COST] - temperature_s * np.log(1.0 - _random(rng))
        # So it is before it is simulated at all where a device has too much to do, or a path is too long.
        too_long = False
        for d in range(devices):
            too_long |= chain.busy_s[d] * (1.0 - _BUSY_ERROR) > limit_s
        num_changed = 0
        if follows and not too_long:
            num_changed, too_long = longest_paths.follow(
                paths, chain.op_device[0], field.op_offsets, field.ops_of_unit, chain.moved, count, limit_s
            )  # fmt: skip
        if too_long:
            step_time_s[0] = np.inf
        else:
            _simulate(simulator, work, chain, limit_s)
        counts[EVALUATIONS] += 1
        missing = _missing_share(chain.peak[0], field.memory_bytes, field.memory_offsets, field.memory_users)
        cost_s = _charged_s(step_time_s[0], missing, reference_s)
        reward = 0.0
        if cost_s <= limit_s:
            reward = min(max((scalars[COST] - cost_s) / temperature_s, -1.0), 1.0)
            counts[ACCEPTED] += 1
            accepted += 1
            if accepted > count_active // _ACTIVE_AN_ACCEPTANCE:
                counts[TRACED] = SIMULATED
            scalars[STEP], scalars[MISSING], scalars[COST] = step_time_s[0], missing, cost_s
            for i in range(count):
                for d in range(devices):
                    chain.rejected[chain.moved[i], d] *= np.float32(0.5)
            if cost_s < scalars[BEST]:
                scalars[BEST_STEP], scalars[BEST_MISSING], scalars[BEST] = step_time_s[0], missing, cost_s
                for i in range(len(chain.best_ops)):
                    chain.best_ops[i] = chain.op_device[0, i]
        else:
            still += 1
            longest_paths.put_back(paths, num_changed)
            chain.rejected[unit, device] += np.float32(1.0)
            for i in range(count):
                back, there = chain.kept[i], chain.placed[chain.moved[i]]
                moved = chain.moved[i]
                chain.busy_s[there] -= field.time_s[moved, there]
                chain.busy_s[back] += field.time_s[moved, back]
                chain.placed[moved] = back
                for j in range(field.op_offsets[moved], field.op_offsets[moved + 1]):
                    chain.op_device[0, field.ops_of_unit[j]] = back
        if not uniform:
            _learn(chain, kind, device, reward)
        scalars[BASELINE] += 0.01 * (reward - scalars[BASELINE])
