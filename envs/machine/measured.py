"""What was measured of a machine's devices: plain data."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec


class DeviceFigures(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a device did.

    Attributes:
        flops_per_s: Rate of large products by dtype, in FLOP/s.
        class_flops_per_s: Rate of ops of other classes in float32, by `envs.clusters.cluster.OP_CLASSES`.
        memory_bytes_per_s: Bytes that a large copy within its memory reads and writes, a second.
        launch_overhead_s: Time of an op that computes next to nothing.
    """

    flops_per_s: dict[str, float]
    memory_bytes_per_s: float
    launch_overhead_s: float
    class_flops_per_s: dict[str, float] = {}


class CopyFigures(msgspec.Struct, frozen=True, omit_defaults=True):
    """What copies from device `a` to device `b` did: bandwidth of large ones, time of tiny ones."""

    a: str
    b: str
    bytes_per_s: float
    latency_s: float


def best_of(figures: Sequence[DeviceFigures]) -> DeviceFigures:
    """The best of each figure that devices of one model showed: what others do on a machine makes them worse only."""
    return DeviceFigures(
        flops_per_s=_most([each.flops_per_s for each in figures]),
        memory_bytes_per_s=max(each.memory_bytes_per_s for each in figures),
        launch_overhead_s=min(each.launch_overhead_s for each in figures),
        class_flops_per_s=_most([each.class_flops_per_s for each in figures]),
    )


def _most(rates: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: max(each[name] for each in rates if name in each) for each in rates for name in each}


class Measured(msgspec.Struct, frozen=True, omit_defaults=True):
    """All that was measured.

    Attributes:
        devices: By the cluster's names.
        copies: Of ordered pairs.
        when: ``"2026-11-29"``.
        took_s: Seconds that it took.
        torch: Version of PyTorch.
        load: Cores' worth of work that others did on the machine when it began.
    """

    devices: dict[str, DeviceFigures]
    copies: tuple[CopyFigures, ...] = ()
    when: str = ""
    took_s: float = 0.0
    torch: str = ""
    load: float = 0.0
