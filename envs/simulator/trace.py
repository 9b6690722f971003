"""When every op and every transfer of one simulated step started and ended, and what memory they held.

Letters: ``N`` ops, ``D`` devices, ``K`` transfers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from envs.clusters.cluster import Cluster

if TYPE_CHECKING:
    from envs.simulator.input import SimulatorInput


@dataclass(frozen=True, eq=False)
class Trace:
    """One simulated step, in full.

    Attributes:
        step_time_s: End of the last op.
        peak_memory_bytes: ``int64[D]``.
        op_device: ``int32[N]``, the placement.
        op_start_s: ``float64[N]``.
        op_end_s: ``float64[N]``.
        transfer_tensor: ``int32[K]``, which tensor is sent; transfers stand in the order in which they were reserved.
        transfer_source: ``int32[K]``, a device.
        transfer_destination: ``int32[K]``, a device.
        transfer_start_s: ``float64[K]``.
        transfer_end_s: ``float64[K]``.
        memory_time_s: For each device the instants, from 0, at which its used memory changed, ``float64[M_d]``.
        memory_bytes: For each device what it used from that instant on, ``int64[M_d]``.
    """

    step_time_s: float
    peak_memory_bytes: NDArray[np.int64]
    op_device: NDArray[np.int32]
    op_start_s: NDArray[np.float64]
    op_end_s: NDArray[np.float64]
    transfer_tensor: NDArray[np.int32]
    transfer_source: NDArray[np.int32]
    transfer_destination: NDArray[np.int32]
    transfer_start_s: NDArray[np.float64]
    transfer_end_s: NDArray[np.float64]
    memory_time_s: tuple[NDArray[np.float64], ...]
    memory_bytes: tuple[NDArray[np.int64], ...]

    @property
    def num_ops(self) -> int:
        """``N``."""
        return len(self.op_device)

    @property
    def num_devices(self) -> int:
        """``D``."""
        return len(self.peak_memory_bytes)

    @property
    def num_transfers(self) -> int:
        """``K``."""
        return len(self.transfer_tensor)

    def transfer_directions(self, cluster: Cluster) -> list[NDArray[np.int32]]:
        """For each of the ``K`` transfers the numbers of the link directions that it crosses, in order."""
        routes = cluster.routes
        pairs = self.transfer_source.astype(np.int64) * cluster.num_devices + self.transfer_destination
        return [routes.directions[routes.offsets[p] : routes.offsets[p + 1]] for p in pairs.tolist()]

    def busy_s(self) -> NDArray[np.float64]:
        """``float64[D]``: seconds for which each device computes."""
        return np.bincount(self.op_device, self.op_end_s - self.op_start_s, self.num_devices).astype(np.float64)


def memory_steps(
    problem: SimulatorInput,
    op_device: NDArray[np.int32],
    op_start_s: NDArray[np.float64],
    op_end_s: NDArray[np.float64],
    transfer_tensor: NDArray[np.int32],
    transfer_destination: NDArray[np.int32],
    transfer_start_s: NDArray[np.float64],
    transfer_end_s: NDArray[np.float64],
    copies: tuple[NDArray[np.integer], NDArray[np.integer]] | None = None,
) -> tuple[tuple[NDArray[np.float64], ...], tuple[NDArray[np.int64], ...]]:
    """Memory in use on each device over time, from the times of ops and transfers alone.

    Args:
        problem: What was simulated.
        op_device: As the other arguments, see `Trace`.
        op_start_s: See `Trace`.
        op_end_s: See `Trace`.
        transfer_tensor: See `Trace`.
        transfer_destination: See `Trace`.
        transfer_start_s: See `Trace`.
        transfer_end_s: See `Trace`.
        copies: The copy that each edge reads, ``int[E]``, negative where it is not one, and the copy that each transfer
            makes, ``int[K]``; None where there is one copy for each tensor and device.

    Returns:
        `Trace.memory_time_s` and `Trace.memory_bytes`.
    """
    num_devices, num_tensors = problem.num_devices, len(problem.tensor_bytes)
    producer = problem.tensor_producer
    edge_tensor = problem.edge_tensor.astype(np.int64)
    edge_device = op_device[problem.consumers]
    # A place is a tensor on a device; every reader and every departure prolongs a tensor's life there.
    last_use_s = np.full(num_tensors * num_devices, -np.inf)
    np.maximum.at(last_use_s, edge_tensor * num_devices + edge_device, op_end_s[problem.consumers])
    home = np.arange(num_tensors) * num_devices + op_device[producer]
    np.maximum.at(last_use_s, home, op_end_s[producer])
    np.maximum.at(last_use_s, home[transfer_tensor], transfer_end_s)
    if copies is None:
        copy_end_s = last_use_s[transfer_tensor.astype(np.int64) * num_devices + transfer_destination]
    else:
        read, made = copies
        of_copy_s = np.full(len(read), -np.inf)
        np.maximum.at(of_copy_s, read[read >= 0], op_end_s[problem.consumers[read >= 0]])
        copy_end_s = of_copy_s[made]

    device = np.concatenate([op_device[producer], transfer_destination])
    start_s = np.concatenate([op_start_s[producer], transfer_start_s])
    end_s = np.concatenate([last_use_s[home], copy_end_s])
    size = np.where(problem.tensor_resident, 0, problem.tensor_bytes)
    size = np.concatenate([size, problem.tensor_bytes[transfer_tensor]])

    resident = np.zeros(num_devices, dtype=np.int64)
    np.add.at(resident, op_device, problem.resident_bytes)
    all_times: list[NDArray[np.float64]] = []
    all_bytes: list[NDArray[np.int64]] = []
    for d in range(num_devices):
        here = device == d
        times_s = np.concatenate([[0.0], start_s[here], end_s[here]])
        change = np.concatenate([resident[d : d + 1], size[here], -size[here]])
        instants, index = np.unique(times_s, return_inverse=True)
        net = np.zeros(len(instants), dtype=np.int64)
        np.add.at(net, index, change)
        keep = net != 0
        keep[0] = True
        all_times.append(instants[keep])
        all_bytes.append(np.cumsum(net)[keep])
    return tuple(all_times), tuple(all_bytes)
