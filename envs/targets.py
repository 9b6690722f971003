"""What will run a placement: the target says how a step runs, what must share a device, and where ops may be.

- ``engine``: the op-by-op engine of `envs.measured`. Any op anywhere; devices and links work at the same time, under
  the schedule ``priority``, ``fifo`` or ``program_order``.
- ``accelerate``: a PyTorch model under Hugging Face Accelerate's hooks (a device map). Whole modules
  (`graphs.colocation.whole_modules`), one op or transfer at a time: the schedule ``sequential``. Accelerate computes
  what is mapped to the CPU on the first GPU, so where there are accelerators, ops may be on these only. The step's
  inputs start on the first of them.

So a problem's schedule says which target it is of.
"""

from __future__ import annotations

from graphs.errors import InputError, unknown_name

TARGETS = ("engine", "accelerate")
"""Names of the targets."""

SEQUENTIAL = "sequential"
"""The schedule of the target ``accelerate``."""


def target_of(schedule: str) -> str:
    """The target that runs a step under a schedule."""
    return "accelerate" if schedule == SEQUENTIAL else "engine"


def schedule_for(target: str, schedule: str | None = None) -> str:
    """The schedule of a problem for a target: the one asked for, if the target has it, else the target's own.

    Args:
        target: One of `TARGETS`.
        schedule: One of `envs.simulator.SCHEDULES`; None for the target's own.

    Raises:
        InputError: The target is unknown, or does not run steps under the schedule.
    """
    if target == "torch_pipeline":
        raise InputError(
            "target 'torch_pipeline' cuts a step into stages and places no groups; take placement.train_pipeline, or "
            "placement train --target torch_pipeline"
        )
    if target not in TARGETS:
        raise unknown_name("target", target, TARGETS)
    if schedule is None:
        return SEQUENTIAL if target == "accelerate" else "priority"
    if target_of(schedule) != target:
        raise InputError(
            f"target '{target}' does not run a step under the schedule '{schedule}'; leave one of the two out"
        )
    return schedule
