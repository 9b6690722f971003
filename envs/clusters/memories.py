"""Which memories a cluster has: one a device, and those that several devices share.

A device has memory of its own (`DeviceSpec.memory_bytes`: what its ops can use). Where devices share one, as the CPU
and the GPU of an Apple M-series chip or of a Jetson do, that is a further limit: what its devices hold together. Their
peaks are added up, though they may fall at different times: the allocators of frameworks keep for their device what it
once held. What is sent between two devices of a shared memory is still copied, as PyTorch copies it, over the link
that joins them.

Letters: ``B`` placements in a batch, ``D`` devices, ``M`` memories: first that of each device, then the shared ones.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class SharedMemory:
    """One memory that several devices use.

    Attributes:
        name: What messages call it; unique in the cluster.
        devices: Names of the devices that share it; each is in one shared memory at most.
        memory_bytes: What they can use together.
    """

    name: str
    devices: tuple[str, ...]
    memory_bytes: int


def without(shared: Sequence[SharedMemory], gone: Collection[str]) -> tuple[SharedMemory, ...]:
    """Shared memories of a cluster that has lost some devices; one that nobody is left to use is gone, too."""
    left = (replace(memory, devices=tuple(d for d in memory.devices if d not in gone)) for memory in shared)
    return tuple(memory for memory in left if memory.devices)


@dataclass(frozen=True, eq=False)
class Memories:
    """All memories of a cluster, as arrays.

    Attributes:
        names: ``M`` names: of the device, or of the shared memory.
        limit_bytes: ``int64[M]``.
        offsets: ``int64[M + 1]``; memory ``m`` is used by the devices `users` from entry ``offsets[m]`` up to, without,
            entry ``offsets[m + 1]``.
        users: ``int64[...]``, device indices.
    """

    names: tuple[str, ...]
    limit_bytes: NDArray[np.int64]
    offsets: NDArray[np.int64]
    users: NDArray[np.int64]

    def used(self, peak_memory_bytes: NDArray[np.int64]) -> NDArray[np.int64]:
        """``int64[B, M]`` from the peaks of devices, ``int64[B, D]``: what of each memory is used."""
        count = peak_memory_bytes.shape[1]
        if len(self.limit_bytes) == count:  # nothing is shared
            return peak_memory_bytes
        shared = [
            peak_memory_bytes[:, self.users[self.offsets[m] : self.offsets[m + 1]]].sum(axis=1)
            for m in range(count, len(self.limit_bytes))
        ]
        return np.concatenate([peak_memory_bytes, np.stack(shared, axis=1)], axis=1)

    def used_by(self, devices: Sequence[int], peak_memory_bytes: NDArray[np.int64]) -> NDArray[np.int64]:
        """``int64[M]``: what of each memory is used where only some devices hold something.

        Args:
            devices: Indices of devices.
            peak_memory_bytes: What each of them holds.
        """
        peaks = np.zeros((1, int(self.users.max()) + 1), dtype=np.int64)
        np.add.at(peaks[0], np.asarray(devices), peak_memory_bytes)
        used: NDArray[np.int64] = self.used(peaks)[0]
        return used

    def lacking(self, peak_memory_bytes: NDArray[np.int64]) -> NDArray[np.int64]:
        """``int64[B, M]`` from ``int64[B, D]``: how many bytes each memory is short of."""
        return np.maximum(self.used(peak_memory_bytes) - self.limit_bytes, 0)

    def fits(self, peak_memory_bytes: NDArray[np.int64]) -> NDArray[np.bool_]:
        """``bool[B]`` from ``int64[B, D]``: whether no memory is short."""
        enough: NDArray[np.bool_] = np.all(self.used(peak_memory_bytes) <= self.limit_bytes, axis=1)
        return enough


def make_memories(
    names: Sequence[str], limit_bytes: Sequence[int] | NDArray[np.int64], shared: Sequence[SharedMemory] = ()
) -> Memories:
    """The memories of some devices.

    Args:
        names: ``D`` names of devices.
        limit_bytes: ``D``, what each can use itself.
        shared: What is shared; its devices are among the names.
    """
    users = [[d] for d in range(len(names))] + [[list(names).index(name) for name in each.devices] for each in shared]
    return Memories(
        names=(*names, *(each.name for each in shared)),
        limit_bytes=np.array([*limit_bytes, *(each.memory_bytes for each in shared)], dtype=np.int64),
        offsets=np.cumsum([0, *map(len, users)]).astype(np.int64),
        users=np.array([d for each in users for d in each], dtype=np.int64),
    )
