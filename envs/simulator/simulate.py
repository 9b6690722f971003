"""One step or a batch of steps, simulated by the compiled kernels; the package states the rules."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs.simulator.input import SimulatorInput
from envs.simulator.plain import simulate_plain
from envs.simulator.trace import Trace, memory_steps
from envs.simulator.workspace import available_cores, is_compiled, kernel_of, pool, simulate_rows, workspace
from graphs.errors import InputError

PLAIN_AT_MOST = 100_000
"""Ops and edges that the plain version simulates in about two seconds."""


class _Plain:
    """Ops and edges that this process has simulated by the plain version."""

    size = 0


_plain = _Plain()


def simulate(problem: SimulatorInput, op_placement: NDArray[np.integer]) -> Trace:
    """Simulate one step and keep everything.

    Args:
        problem: What to simulate.
        op_placement: ``int[N]``, a device index for each op.
    """
    placements = as_placements(problem, np.asarray(op_placement)[None])
    step_time_s, peak = np.empty(1), np.empty((1, problem.num_devices), dtype=np.int64)
    with workspace(problem) as work:
        simulate_rows(problem, work, placements, np.full(1, np.inf), step_time_s, peak)
        transfers = kernel_of(problem).transfers_of(work)
        tensor, destination = (transfers[key].astype(np.int32) for key in ("tensor", "destination"))
        start_s, end_s = transfers["start_s"].copy(), transfers["end_s"].copy()
        op_start_s, op_end_s = (kernel_of(problem).spans_of(work)[key].copy() for key in ("start_s", "end_s"))
        copies = kernel_of(problem).copies_of(work)
    memory_time_s, memory_bytes = memory_steps(
        problem, placements[0], op_start_s, op_end_s, tensor, destination, start_s, end_s, copies
    )
    return Trace(
        step_time_s=float(step_time_s[0]),
        peak_memory_bytes=peak[0],
        op_device=placements[0].copy(),
        op_start_s=op_start_s,
        op_end_s=op_end_s,
        transfer_tensor=tensor,
        transfer_source=placements[0][problem.tensor_producer[tensor]],
        transfer_destination=destination,
        transfer_start_s=start_s,
        transfer_end_s=end_s,
        memory_time_s=memory_time_s,
        memory_bytes=memory_bytes,
    )


def simulate_once(problem: SimulatorInput, op_placement: NDArray[np.integer]) -> Trace:
    """As `simulate`, for a process that may want no other step.

    Where the kernel would have to be compiled for it, the first steps of a process, `PLAIN_AT_MOST` ops and edges in
    all, are simulated by the plain version, which is the same to the last bit and takes less time than compiling.
    """
    size = problem.num_ops + len(problem.consumers)
    if _plain.size + size <= PLAIN_AT_MOST and not is_compiled(problem):
        _plain.size += size
        return simulate_plain(problem, as_placements(problem, np.asarray(op_placement)[None])[0])
    return simulate(problem, op_placement)


def simulate_batch(
    problem: SimulatorInput,
    op_placements: NDArray[np.integer],
    *,
    threads: int | None = None,
    abort_above_s: float | NDArray[np.float64] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Step times and peak memories of a batch of placements.

    Args:
        problem: What to simulate.
        op_placements: ``int[B, N]``, a device index for each op.
        threads: Cores to use; by default all that this process may use. The result does not depend on it.
        abort_above_s: Seconds, one figure or ``float64[B]``: stop a step as soon as it is proven to take longer, by the
            longest path that is left or by what a device has left to compute. A step time that is returned is exact
            all the same. Placements must have every op on a device that it may be on.

    Returns:
        ``(step_time_s float64[B], peak_memory_bytes int64[B, D])``. A step that was stopped takes longer than it might;
        its step time is given as infinity and its peaks are those until then.

    Raises:
        InputError: The shape or a device index is wrong, or a bound is not a number.
    """
    placements = as_placements(problem, np.asarray(op_placements))
    count = len(placements)
    step_time_s = np.empty(count)
    peak = np.empty((count, problem.num_devices), dtype=np.int64)
    limit_s = limits_s(abort_above_s, count)
    parts = min(available_cores() if threads is None else max(threads, 1), count)

    def part(number: int) -> None:
        rows = slice(count * number // parts, count * (number + 1) // parts)
        with workspace(problem) as work:
            simulate_rows(problem, work, placements[rows], limit_s[rows], step_time_s[rows], peak[rows])

    if count == 0:
        return step_time_s, peak
    problem.idle_workspaces  # noqa: B018 (made once, before several threads ask for it)
    others = [pool().submit(part, number) for number in range(1, parts)]
    part(0)
    for other in others:
        other.result()
    return step_time_s, peak


def limits_s(abort_above_s: float | NDArray[np.float64] | None, count: int) -> NDArray[np.float64]:
    """``float64[count]``: the bounds as the kernel wants them, infinity where there is none.

    Raises:
        InputError: A bound is not a number.
    """
    limit_s = np.full(count, np.inf)
    if abort_above_s is not None:
        limit_s[:] = abort_above_s
        if np.isnan(limit_s).any():
            raise InputError("abort_above_s is not a number; give seconds, or infinity for no bound")
    return limit_s


def as_placements(problem: SimulatorInput, placements: NDArray[np.integer]) -> NDArray[np.int32]:
    """The placements as the kernel wants them: read-only, contiguous ``int32[B, N]``, every index in range."""
    if placements.ndim != 2 or placements.shape[1] != problem.num_ops or placements.dtype.kind not in "iu":
        raise InputError(
            f"placements of ops must be integers of shape [B, {problem.num_ops}], not {placements.dtype} of shape "
            f"{list(placements.shape)}"
        )
    if placements.size and not 0 <= placements.min() <= placements.max() < problem.num_devices:
        raise InputError(
            f"a placement names device {placements.min()} to {placements.max()}; there are devices 0 to "
            f"{problem.num_devices - 1}"
        )
    view = np.ascontiguousarray(placements, dtype=np.int32).view()
    view.setflags(write=False)
    return view
