"""What holds a whole step back: a device's work, the longest path, a link, or memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from envs.problem import PlacementProblem
from envs.simulator.trace import Trace
from placement.results.reasons.moving import Moves
from placement.results.reasons.step_parts import link_seconds

LimitKind = Literal["path", "device", "link", "memory"]


@dataclass(frozen=True)
class Limit:
    """One thing that a step cannot be shorter than, as it is placed.

    Attributes:
        kind: ``"path"``: the longest path of ops, each on the fastest device that it may be on, no transfers.
            ``"device"``: what the busiest device computes. ``"link"``: for how long the busiest direction of a link is
            in use. ``"memory"``: the step that would be reached by the best move that does not fit; it counts as a
            limit by what it would save.
        name: The device, the link as ``"a -> b"``, or the group that does not fit.
        seconds: See `kind`.
        share: For ``"memory"`` the share of the step that the move would save, else `seconds` over the step time.
    """

    kind: LimitKind
    name: str
    seconds: float
    share: float


def find_limits(problem: PlacementProblem, trace: Trace, moves: Moves, *, feasible: bool) -> tuple[Limit, ...]:
    """What the step cannot be shorter than, the tightest first; memory is last, and there only if it costs time.

    Args:
        problem: What is placed.
        trace: Of one step.
        moves: Every group elsewhere.
        feasible: Whether the placement fits; memory costs nothing where it is exceeded already.
    """
    step_s = trace.step_time_s
    if step_s <= 0:
        return ()
    busy_s = trace.busy_s()
    d = int(busy_s.argmax())
    path_s = float(problem.simulator_input.remaining_path_s.max())
    found = [
        Limit("device", problem.cluster.device_names[d], float(busy_s[d]), float(busy_s[d]) / step_s),
        Limit("path", "", path_s, path_s / step_s),
    ]
    in_use = link_seconds(problem, trace)
    if in_use.any():
        direction = int(in_use.argmax())
        link = problem.cluster.links[direction // 2]
        ends = (link.a, link.b) if direction % 2 == 0 else (link.b, link.a)
        found.append(Limit("link", " -> ".join(ends), float(in_use[direction]), float(in_use[direction]) / step_s))
    found.sort(key=lambda limit: -limit.share)
    too_large = feasible & moves.elsewhere() & ~moves.feasible & (moves.short_bytes > 0)
    if too_large.any():
        times_s = np.where(too_large, moves.step_time_s, np.inf)
        group, device = np.unravel_index(int(times_s.argmin()), times_s.shape)
        best_s = float(times_s[group, device])
        if best_s < step_s:
            name = f"{problem.groups.names[group]} on {problem.cluster.device_names[device]}"
            found.append(Limit("memory", name, best_s, 1 - best_s / step_s))
    return tuple(found)
