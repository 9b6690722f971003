"""Scotch: the weighted graph of groups mapped onto the weighted cluster, CPU included.

Pellegrini and Roman, "Scotch: a software package for static mapping by dual recursive bipartitioning of process and
architecture graphs", HPCN 1996, doi:10.1007/3-540-61142-8_588. The program ``scotch_gmap`` of Debian's package
``scotch`` does the work, as in the paper (Mirhoseini et al., 2017, section 4.1): devices weigh what they can do in a
second, and are as far apart as a transfer between them takes long.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from envs.problem import PlacementProblem
from graphs.errors import InputError, NotServedError
from placement.placers.base import DEFAULT_OPTIONS, Budget, Placed, Search, SearchOptions
from placement.placers.mincut import integer_weights, subgraph
from placement.placers.searching.repair import repair
from placement.placers.single_device import all_on, seconds_per_mebibyte

PROGRAM = "scotch_gmap"
TIME_LIMIT_S = 60.0
FARTHEST = 100
"""Distances are whole numbers from 1 to this."""

STRONGEST = 1000
"""Devices' weights are whole numbers from 1 to this."""


def place(
    problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator, options: SearchOptions = DEFAULT_OPTIONS
) -> Placed:
    """Map all groups that may be on more than one device; the others stay where they must.

    Raises:
        NotServedError: The program is not installed.
        InputError: The program refuses the graph.
    """
    search = Search(problem, budget)
    program = shutil.which(PROGRAM)
    if program is None:
        raise NotServedError(
            f"placer 'scotch' needs the program '{PROGRAM}', which is not installed; on Debian or Ubuntu: "
            "apt-get install scotch",
            reason="not installed: apt-get install scotch",
        )
    members = np.flatnonzero(problem.allowed.sum(axis=1) > 1)
    placement = problem.allowed.argmax(axis=1).astype(np.int64)
    if len(members):
        mapped = _map(program, problem, members, budget.time_limit_s or TIME_LIMIT_S)
        for device in np.unique(mapped):
            here = members[mapped == device]
            placement[here] = all_on(problem, int(device))[here]
    repair(search, placement)
    return search.placed()


def _map(program: str, problem: PlacementProblem, members: NDArray[np.int64], limit_s: float) -> NDArray[np.int64]:
    """The device of each member."""
    with tempfile.TemporaryDirectory(prefix="scotch-") as folder:
        source, target, answer = (Path(folder) / name for name in ("graph.src", "cluster.tgt", "answer.map"))
        try:
            source.write_text(source_text(problem, members))
            target.write_text(target_text(problem))
        except OSError as error:
            raise InputError(
                f"placer 'scotch': '{folder}' cannot be written to ({error.strerror}); make room"
            ) from error
        try:
            done = subprocess.run(
                [program, str(source), str(target), str(answer)], capture_output=True, text=True, timeout=limit_s
            )
        except subprocess.TimeoutExpired as error:
            raise InputError(f"placer 'scotch': '{PROGRAM}' did not end within {limit_s:.0f} s") from error
        if done.returncode != 0 or not answer.exists():
            reason = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
            raise InputError(f"placer 'scotch': '{PROGRAM}' refused the graph: {reason}")
        rows = np.array(answer.read_text().split(), dtype=np.int64)
    pairs = rows[1:].reshape(-1, 2)
    mapped = np.zeros(len(members), dtype=np.int64)
    mapped[pairs[:, 0]] = pairs[:, 1]
    return mapped


def source_text(problem: PlacementProblem, members: NDArray[np.int64]) -> str:
    """The graph of some groups in Scotch's format: vertices weigh time, edges weigh bytes."""
    offsets, neighbours, weights = subgraph(problem, members)
    loads = integer_weights(problem.group_time_s[members].mean(axis=1))
    lines = ["0", f"{len(members)} {len(neighbours)}", "0 011"]
    for i in range(len(members)):
        arcs = [f"{weights[e]} {neighbours[e]}" for e in range(offsets[i], offsets[i + 1])]
        lines.append(" ".join([str(loads[i]), str(len(arcs)), *arcs]))
    return "\n".join(lines) + "\n"


def target_text(problem: PlacementProblem) -> str:
    """The cluster as a decomposition-defined architecture: devices with weights, and distances between all pairs."""
    speed = 1.0 / np.maximum(problem.op_time_s.sum(axis=1), 1e-300)
    weight = np.maximum(np.rint(speed / speed.max() * STRONGEST), 1).astype(np.int64)
    apart_s = seconds_per_mebibyte(problem)
    count = problem.num_devices
    nearest_s = apart_s[~np.eye(count, dtype=np.bool_)].min(initial=np.inf)
    distance = np.clip(np.rint(apart_s / nearest_s), 1, FARTHEST).astype(np.int64)
    leaves = _leaves(1, count)
    lines = ["deco 0", f"{count} {max(leaves)}"]
    lines += [f"{device} {weight[device]} {leaf}" for device, leaf in enumerate(leaves)]
    lines += [" ".join(str(distance[i, j]) for j in range(i)) for i in range(1, count)]
    return "\n".join(lines) + "\n"


def _leaves(root: int, count: int) -> list[int]:
    """Numbers of the leaves of a binary tree that halves `count` devices again and again; a vertex's are 2n, 2n + 1."""
    if count == 1:
        return [root]
    left = (count + 1) // 2
    return _leaves(2 * root, left) + _leaves(2 * root + 1, count - left)
