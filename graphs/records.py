"""Ops and tensors of a graph as the records that `graphs.computation_graph.build` takes, for what transforms graphs."""

from __future__ import annotations

import numpy as np

from graphs.computation_graph import (
    DEVICE_KINDS,
    DTYPES,
    PHASES,
    RESIDENT_PARTS,
    ComputationGraph,
    OpRecord,
    TensorRecord,
)


def op_record(graph: ComputationGraph, op: int) -> OpRecord:
    """One op of a graph."""
    kinds = int(graph.allowed_kinds[op])
    return OpRecord(
        name=graph.op_names[op],
        type=graph.type_names[graph.op_type[op]],
        phase=PHASES[graph.phase[op]],
        module=graph.module_names[graph.module[op]],
        module_call=int(graph.module_call[op]),
        flops=int(graph.flops[op]),
        bytes_accessed=int(graph.bytes_accessed[op]),
        dtype=DTYPES[graph.dtype[op]],
        batch=int(graph.batch[op]),
        resident_bytes={
            part: int(size) for part, size in zip(RESIDENT_PARTS, graph.resident_bytes[op], strict=True) if size
        },
        allowed_kinds=[kind for bit, kind in enumerate(DEVICE_KINDS) if kinds >> bit & 1],
        output_shapes=graph.output_shapes[op],
        time_s={spec: float(times[op]) for spec, times in graph.time_s.items() if not np.isnan(times[op])},
    )


def tensor_record(graph: ComputationGraph, tensor: int) -> TensorRecord:
    """One tensor of a graph; ops are called by their position in the graph."""
    first, end = graph.consumer_offsets[tensor : tensor + 2]
    return TensorRecord(
        int(graph.tensor_producer[tensor]),
        int(graph.tensor_bytes[tensor]),
        graph.consumers[first:end].tolist(),
        resident=bool(graph.tensor_resident[tensor]),
        transfer_s=float(graph.tensor_transfer_s[tensor]),
    )
