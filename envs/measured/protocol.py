"""What passes between the process that trains and the one that measures: small structs, never anything executable."""

from __future__ import annotations

from typing import BinaryIO

import msgspec


class Load(msgspec.Struct, frozen=True, tag="load"):
    """Build the model of a source, capture its step, and start the devices.

    Attributes:
        source: A workload of the zoo, or ``python:module:function``.
        graph_sha256: Of the graph that placements are for.
        devices: Names of real devices.
        remaining_path_s: ``float64[N]`` as bytes, for the schedule ``priority``.
        import_path: Where modules are looked for.
        compile_regions: Some placements are to be run with regions that are compiled; refuse now if that cannot be.
    """

    source: str
    graph_sha256: str
    devices: list[str]
    remaining_path_s: bytes
    import_path: list[str]
    compile_regions: bool = False


class Measure(msgspec.Struct, frozen=True, tag="measure"):
    """Run a placement some steps.

    Attributes:
        placement: ``int32[N]`` as bytes, device numbers.
        schedule: Which ready op a device runs first.
        time_limit_s: Seconds that all of it may take.
        protocol: How many steps, see `Protocol`.
        keep_tasks: Report when each op and copy of each step that counts started and ended.
        compile_regions: Let PyTorch's compiler compile the regions; the time that this takes does not count, and one
            step more is dropped.
    """

    placement: bytes
    schedule: str
    time_limit_s: float
    protocol: Protocol
    keep_tasks: bool = False
    compile_regions: bool = False


class Plain(msgspec.Struct, frozen=True, tag="plain"):
    """Run a model's step as PyTorch itself does; no `Load` comes before it.

    Attributes:
        source: A workload of the zoo, or ``python:module:function``.
        device: Name of a real device.
        is_compiled: By `torch.compile`.
        time_limit_s: Seconds that all of it may take, building the model and compiling included.
        protocol: How many steps, see `Protocol`.
        import_path: Where modules are looked for.
    """

    source: str
    device: str
    is_compiled: bool
    time_limit_s: float
    protocol: Protocol
    import_path: list[str]


class Protocol(msgspec.Struct, frozen=True):
    """How a placement is measured; the defaults are those of Mirhoseini et al. (2017), section 4.2.

    Attributes:
        dropped: Steps at the start that do not count.
        steps: Steps that count.
        short_steps: Steps that count where one takes less than `short_s`.
        short_s: Seconds.
        least_steps: With fewer that count when the time is over, the placement is not measured.
    """

    dropped: int = 1
    steps: int = 9
    short_steps: int = 15
    short_s: float = 10.0
    least_steps: int = 3


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The model is loaded."""


class Measured(msgspec.Struct, frozen=True, tag="measured"):
    """What the steps of a placement came to.

    Attributes:
        step_times_s: Of the steps that count.
        peak_memory_bytes: By device; empty of `Plain`.
        task_start_s: With `Measure.keep_tasks` ``float64[steps, N + C]`` as bytes: when each op, then each copy,
            started in each step that counts; NaN for what does nothing.
        task_end_s: Likewise.
        copies: With `Measure.keep_tasks` ``int64[C, 4]`` as bytes: of each copy the op that made its content, the
            device that it is from, the one that makes it, and its bytes.
    """

    step_times_s: list[float]
    peak_memory_bytes: list[int]
    task_start_s: bytes = b""
    task_end_s: bytes = b""
    copies: bytes = b""


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """It did not work.

    Attributes:
        reason: Why, one clause.
        is_input: The input is to blame, not the placement.
        is_last: The process ends with this.
    """

    reason: str
    is_input: bool = False
    is_last: bool = False


Request = Load | Measure | Plain
Reply = Ready | Measured | Failed

LENGTH_BYTES = 8
_MOST_BYTES = 1 << 30


def write(stream: BinaryIO, message: msgspec.Struct) -> None:
    """Send a message."""
    data = msgspec.msgpack.encode(message)
    stream.write(len(data).to_bytes(LENGTH_BYTES, "big") + data)
    stream.flush()


def read(stream: BinaryIO) -> bytes:
    """Receive a message's bytes; nothing at the end of the stream."""
    head = stream.read(LENGTH_BYTES)
    length = int.from_bytes(head, "big")
    if len(head) < LENGTH_BYTES or length > _MOST_BYTES:
        return b""
    data = stream.read(length)
    return data if len(data) == length else b""
