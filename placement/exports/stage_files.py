"""The stages of a pipeline, from ``stages.json`` to the file of another tool."""

from __future__ import annotations

from pathlib import Path

from graphs.errors import unknown_name
from graphs.files import write_atomically
from placement.arguments import check_can_write
from placement.exports.layer_counts import TOOLS, encode_for
from placement.exports.stages import Stages, read_stages, schedule_csv

SCHEDULE = "schedule"
"""The format that is PyTorch's schedule file."""


def export_stages(stages: str | Path, out: str | Path, *, format: str) -> Stages:
    """Turn the stages of a pipeline into what another tool reads.

    Args:
        stages: A run directory of the target ``torch_pipeline``, or a file ``stages.json``.
        out: The file to write.
        format: ``schedule``, the actions of every rank as PyTorch's schedule files have them; or one of
            `placement.exports.layer_counts.TOOLS`.

    Raises:
        InputError: Bad input, or the tool cannot run such stages; the message says what.
    """
    if format != SCHEDULE and format not in TOOLS:
        raise unknown_name("format", format, (SCHEDULE, *TOOLS))
    path = Path(out)
    check_can_write(path)
    read = read_stages(stages)
    write_atomically(path, schedule_csv(read).encode() if format == SCHEDULE else encode_for(format, read))
    return read
