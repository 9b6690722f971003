"""torchrec's own planner, asked where each table goes; its package is used where it is installed.

Tables are asked for whole (``table_wise``): what is cut is cut before, by `graphs.split_tables`. torchrec copies the
dense part to all devices, so its bytes, and 15% of each memory, are not for tables. Its model of a machine has one
bandwidth of memory and one between devices: the least of each counts.

torchrec needs the ``fbgemm-gpu-cpu`` (or ``fbgemm-gpu``) that is made for the installed PyTorch. Compared in torchrec
1.8.0 with PyTorch 2.13 on CPUs: on ``dlrm`` and the clusters `a100x4`, `dgx_a100` and `h200x8`, its plan and the one of
`placement.placers.tables` differ in single tables, and their step times by less than 0.1%.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from envs.problem import PlacementProblem
from graphs.extras import is_installed
from graphs.tables import Table

_HOST_BYTES = 2**40
_ELEMENT_BYTES = 4


def ask_torchrec(
    problem: PlacementProblem,
    tables: Sequence[Table],
    accelerators: Sequence[int],
    *,
    row_bytes: Sequence[int],
    dense_bytes: int,
    reserved: float,
) -> tuple[list[int] | None, str]:
    """Where torchrec's planner puts each table.

    Args:
        problem: What is placed.
        tables: Which.
        accelerators: Indices of the devices that tables may be on.
        row_bytes: What the look-ups of each table read, which says how many rows a sample looks up.
        dense_bytes: What all else keeps, on each of them.
        reserved: The share of each memory that is left out.

    Returns:
        The device of each table, and whose plan it is (``"torchrec 1.8.0"``); None where it is not installed, does not
        load or finds no plan, and why.
    """
    if not is_installed("torchrec"):
        return None, "by its published rule: torchrec is not installed"
    try:
        with _quiet():
            import torchrec
            from torchrec.distributed.planner import types as planner_types
    except (ImportError, OSError) as error:  # made for another PyTorch
        return None, f"by its published rule: torchrec does not load ({str(error).splitlines()[0][:80]})"
    by = f"torchrec {torchrec.__version__}"
    try:
        with _quiet():
            ranks = _plan(problem, tables, accelerators, row_bytes, dense_bytes, reserved)
    except planner_types.PlannerError:
        return None, f"by its published rule: the planner of {by} finds no plan that fits the accelerators"
    return [accelerators[rank] for rank in ranks], f"by the planner of {by}"


def _plan(
    problem: PlacementProblem,
    tables: Sequence[Table],
    accelerators: Sequence[int],
    row_bytes: Sequence[int],
    dense_bytes: int,
    reserved: float,
) -> list[int]:
    """The rank of each table."""
    import torch
    from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
    from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
    from torchrec.distributed.planner.storage_reservations import HeuristicalStorageReservation
    from torchrec.distributed.planner.types import CustomTopologyData

    graph, cluster = problem.graph, problem.cluster
    names = [f"table_{i}" for i in range(len(tables))]
    pooled = [int(graph.tensor_bytes[graph.tensor_offsets[table.lookups[0]]]) for table in tables]
    batch = max(1, *(bytes_ // (_ELEMENT_BYTES * table.width) for bytes_, table in zip(pooled, tables, strict=True)))
    rows = [max(1.0, read / (batch * _ELEMENT_BYTES * t.width)) for read, t in zip(row_bytes, tables, strict=True)]
    count = len(accelerators)
    rooms = [max(0, int(cluster.memory_bytes[device]) - dense_bytes) for device in accelerators]
    between = [float(cluster.routes.bytes_per_s[a, b]) for a in accelerators for b in accelerators if a != b]
    speed = min(cluster.devices[device].spec.memory_bytes_per_s for device in accelerators)
    capacity: dict[str, list[int]] = {"hbm_cap": rooms, "ddr_cap": [_HOST_BYTES] * count}
    topology = Topology(
        world_size=count,
        local_world_size=count,
        compute_device="cuda",
        hbm_mem_bw=speed / 1e3,  # bytes a millisecond
        intra_host_bw=min(between, default=speed) / 1e3,
        custom_topology_data=CustomTopologyData(data=capacity, world_size=count),
    )
    configs = [
        EmbeddingBagConfig(
            num_embeddings=table.rows, embedding_dim=table.width, name=name, feature_names=[f"of_{name}"]
        )
        for name, table in zip(names, tables, strict=True)
    ]
    constraints = {
        name: ParameterConstraints(sharding_types=["table_wise"], compute_kernels=["fused"], pooling_factors=[many])
        for name, many in zip(names, rows, strict=True)
    }
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=max(1, batch // count),
        constraints=constraints,
        storage_reservation=HeuristicalStorageReservation(percentage=reserved),
    )
    bags = EmbeddingBagCollection(device=torch.device("meta"), tables=configs)
    sharders: list[Any] = [EmbeddingBagCollectionSharder()]
    found = planner.plan(bags, sharders)
    rank = {
        name: int(sharding.sharding_spec.shards[0].placement.rank())
        for module in found.plan.values()
        for name, sharding in module.items()
    }
    return [rank[name] for name in names]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torchrec warns of and logs."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
