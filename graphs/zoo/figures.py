"""What each workload amounts to in its default sizes, so that a list of them needs neither PyTorch nor a capture.

``figures.json`` is written by ``scripts/workloads.py``, together with the table of ``docs/results/workloads.md``.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

PATH = Path(__file__).with_name("figures.json")


class Figures(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A training step of one workload.

    Attributes:
        ops: Ops, parameters and inputs among them.
        groups: Natural co-location groups.
        parameter_bytes: Tied weights counted once.
        flops: Of the whole step.
        peak_memory_bytes: On one device without limit, the optimizer's state included.
    """

    ops: int
    groups: int
    parameter_bytes: int
    flops: int
    peak_memory_bytes: int


def load_figures() -> dict[str, Figures]:
    """The figures by workload."""
    return msgspec.json.decode(PATH.read_bytes(), type=dict[str, Figures])
