"""Copies that the receiver makes itself, lowered into op times: the compiled simulators know nothing of them.

Between cores that share memory nobody moves bytes but the core that wants them, and it computes nothing meanwhile. Over
a link with `envs.clusters.cluster.Link.receiver_copies` a transfer therefore takes the link's latency alone, and the
seconds of its bytes are added to the first op on the receiving device that reads the tensor: the one of highest
priority, under the other schedules the one that comes first in the program. A copy thus takes the receiver's time
once, however many ops read it. A tensor whose transfers take a given time costs the receiver nothing. What is
simplified: a receiver that waits for another input of that op does not copy meanwhile, and another reader that is ready
before that op does not wait for the copy.

Searches that simulate in compiled code of their own use the link model, in which a copy overlaps;
`PlacementProblem.evaluate` and what is reported use this one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from envs.compiling import compiled

if TYPE_CHECKING:
    from envs.simulator.input import SimulatorInput

AT_ONCE = 1e30
"""Bytes a second of a transfer whose bytes the receiver copies."""


def lowered(problem: SimulatorInput, work: Any) -> Any:
    """A workspace of either compiled simulator with op times of its own, a row a device, for `charge` to fill."""
    times = np.empty((problem.num_devices, problem.num_ops))
    view = times.view()
    view.setflags(write=False)  # as the kernels are compiled for
    work.devices["spec"] = np.arange(problem.num_devices)
    # Behind the routes are the prices of tensors whose transfers take a given time.
    work.routes["bytes_per_s"][: problem.num_devices**2] = lowered_bytes_per_s(problem).ravel()
    return work._replace(op_time_s=view)


def lowered_bytes_per_s(problem: SimulatorInput) -> NDArray[np.float64]:
    """``float64[D, D]``: what is left of the routes' bandwidths for the transfers themselves."""
    return np.where(problem.receive_s_per_byte > 0, AT_ONCE, problem.route_bytes_per_s)


def charge(problem: SimulatorInput, work: Any, placement: NDArray[np.int32]) -> None:
    """Fill a `lowered` workspace's op times for one placement of ops, ``int32[N]``.

    The workspace has its ops in reading order, which is that of priority where the schedule goes by it.
    """
    _charge(
        work.op_time_s.base,
        problem.op_time_s,
        problem.device_spec,
        problem.reading_order,
        problem.receive_s_per_byte,
        problem.tensor_producer,
        problem.copied_bytes,
        problem.consumer_offsets,
        problem.consumers,
        placement,
        np.zeros((2, problem.num_devices), dtype=np.int64),
    )


def op_times_s(problem: SimulatorInput, placement: NDArray[np.int32]) -> NDArray[np.float64]:
    """``float64[N]``: seconds of each op where it is placed, with the copies that it makes: the plain version."""
    times = problem.op_time_s[problem.device_spec[placement], np.arange(problem.num_ops)].copy()
    for tensor, producer in enumerate(problem.tensor_producer.tolist()):
        home = int(placement[producer])
        first: dict[int, int] = {}
        for reader in problem.consumers[problem.consumer_offsets[tensor] : problem.consumer_offsets[tensor + 1]]:
            device = int(placement[reader])
            known = first.get(device, int(reader))
            first[device] = min(known, int(reader), key=lambda op: int(problem.reading_order[op]))
        for device, reader in first.items():
            if device != home:
                times[reader] += float(problem.copied_bytes[tensor]) * problem.receive_s_per_byte[home, device]
    return times


@compiled
def _charge(
    times: NDArray[np.float64],
    op_time_s: NDArray[np.float64],
    device_spec: NDArray[np.int32],
    reading_order: NDArray[np.int64],
    s_per_byte: NDArray[np.float64],
    tensor_producer: NDArray[np.int32],
    tensor_bytes: NDArray[np.int64],
    consumer_offsets: NDArray[np.int32],
    consumers: NDArray[np.int32],
    placement: NDArray[np.int32],
    marks: NDArray[np.int64],
) -> None:
    """`marks` ``[2, D]``: of each device one more than the tensor that was met there last, and its first reader."""
    for op in range(len(placement)):
        times[placement[op], reading_order[op]] = op_time_s[device_spec[placement[op]], op]
    for tensor in range(len(tensor_producer)):
        home = placement[tensor_producer[tensor]]
        for e in range(consumer_offsets[tensor], consumer_offsets[tensor + 1]):
            reader = consumers[e]
            device = placement[reader]
            if marks[0, device] != tensor + 1:
                marks[0, device] = tensor + 1
                marks[1, device] = reader
            elif reading_order[reader] < reading_order[marks[1, device]]:
                marks[1, device] = reader
        for e in range(consumer_offsets[tensor], consumer_offsets[tensor + 1]):
            device = placement[consumers[e]]
            if marks[0, device] == tensor + 1:
                marks[0, device] = 0
                if device != home:
                    times[device, reading_order[marks[1, device]]] += tensor_bytes[tensor] * s_per_byte[home, device]
