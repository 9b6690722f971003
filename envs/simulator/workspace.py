"""Which compiled kernel simulates a schedule, what it works on, and the threads that run it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from envs.compiling import Packed, is_at_hand
from envs.simulator import in_order, receiving, sequential
from envs.simulator.choosing import step
from envs.simulator.choosing import work as choosing_work
from envs.simulator.input import SimulatorInput


class Kernel(NamedTuple):
    """The functions of one compiled simulator."""

    make_work: Callable[[SimulatorInput], Any]
    simulate_many: Callable[..., None]
    spans_of: Callable[[Any], NDArray[Any]]  # when each op of the last step started and ended, records ``[N]``
    transfers_of: Callable[[Any], NDArray[Any]]
    copies_of: Callable[[Any], tuple[NDArray[Any], NDArray[Any]] | None]  # as `envs.simulator.trace.memory_steps` asks


def _one_a_device(work: Any) -> None:
    """One copy of a tensor for each device, so none is numbered."""


def _ops(work: Any) -> NDArray[Any]:
    return work.ops


_CHOOSING = Kernel(
    choosing_work.make_work,
    step.simulate_many,
    choosing_work.spans_of,
    choosing_work.transfers_of,
    _one_a_device,
)
_IN_ORDER = Kernel(in_order.make_work, in_order.simulate_many, _ops, in_order.transfers_of, _one_a_device)
_SEQUENTIAL = Kernel(
    sequential.make_work, sequential.simulate_many, _ops, sequential.transfers_of, sequential.copies_of
)
_KERNELS = {"priority": _CHOOSING, "fifo": _CHOOSING, "program_order": _IN_ORDER, "sequential": _SEQUENTIAL}


def kernel_of(problem: SimulatorInput) -> Kernel:
    """The kernel of the problem's schedule."""
    return _KERNELS[problem.schedule]


def is_compiled(problem: SimulatorInput) -> bool:
    """Whether the kernel of the problem's schedule would not have to be compiled first."""
    return is_at_hand(kernel_of(problem).simulate_many)


def simulate_rows(
    problem: SimulatorInput,
    work: Any,
    placements: NDArray[np.int32],
    limit_s: NDArray[np.float64],
    step_time_s: NDArray[np.float64],
    peak: NDArray[np.int64],
) -> None:
    """Simulate placements of ops, ``int32[B, N]``, in a workspace of `workspace`; the last three are ``[B, ...]``."""
    simulate_many = kernel_of(problem).simulate_many
    if not problem.receives:
        simulate_many(work, placements, limit_s, step_time_s, peak)
        return
    for row in range(len(placements)):  # each has op times of its own
        receiving.charge(problem, work, placements[row])
        part = slice(row, row + 1)
        simulate_many(work, placements[part], limit_s[part], step_time_s[part], peak[part])


@contextmanager
def workspace(problem: SimulatorInput) -> Iterator[Any]:
    """A workspace that no other thread has; kept for the next call."""
    try:
        work = problem.idle_workspaces.pop()
    except IndexError:
        work = kernel_of(problem).make_work(problem)
        if problem.receives:
            work = receiving.lowered(problem, work)
        work = Packed(work)
    yield work
    problem.idle_workspaces.append(work)


class Workspace(NamedTuple):
    """A workspace for compiled code that calls the simulator itself, by the link model.

    Attributes:
        simulate_many: The simulator.
        work: What it works on.
        views: Of what a step leaves: start and end of each op, ``float64[N]``; of each transfer the tensor and the
            destination, ``uint32``, and the end, ``float64``; and how many transfers there were, ``uint32[1]``. Behind
            them are the position of each op in what goes by op, ``uint32[N]``, and the tensor that a number of a
            transfer's tensor means, ``uint32[T]``.
        left_s: ``float64[N]`` by position: what the simulator takes for the least seconds from each op's start to the
            end of the step. They may be changed to larger ones that are true. Empty where the schedule asks for none.
    """

    simulate_many: Callable[..., None]
    work: Packed
    views: tuple[NDArray[Any], ...]
    left_s: NDArray[np.float64]


def make_workspace(problem: SimulatorInput) -> Workspace:
    """A workspace of one's own."""
    kernel = kernel_of(problem)
    work = Packed(kernel.make_work(problem))
    sent, left_s = work.transfers, np.zeros(0)
    if kernel is _CHOOSING:
        ops, count, left_s = work.spans, work.state["transfers"], work.ops["remaining_s"][: problem.num_ops]
        position, tensors = work.position, work.tensor_order
    else:
        ops, count = work.ops, work.counts[:1]
        position = np.arange(problem.num_ops, dtype=np.uint32)
        tensors = np.arange(len(problem.tensor_bytes), dtype=np.uint32)
        if kernel is _IN_ORDER:
            left_s = work.remaining_s
    views = ops["start_s"], ops["end_s"], sent["tensor"], sent["destination"], sent["end_s"], count, position, tensors
    return Workspace(kernel.simulate_many, work, views, left_s)


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_pools: list[ThreadPoolExecutor] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pools.clear)  # a child has none of its parent's threads


def pool() -> ThreadPoolExecutor:
    """The threads that simulate batches, one a core; made when first asked for."""
    if not _pools:
        _pools.append(ThreadPoolExecutor(max_workers=available_cores(), thread_name_prefix="simulator"))
    return _pools[0]
