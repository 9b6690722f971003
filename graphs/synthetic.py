"""Random graphs of any size, for benchmarks and tests; not models of anything."""

from __future__ import annotations

import numpy as np

from graphs.computation_graph import ComputationGraph, OpRecord, TensorRecord, build


def random_graph(
    num_ops: int,
    *,
    edges_per_op: float = 1.5,
    seed: int = 0,
    locality: int = 50,
    resident_bytes: int = 0,
    name: str | None = None,
) -> ComputationGraph:
    """A random acyclic graph in which each op but the first reads at least one earlier op.

    Args:
        num_ops: ``N``.
        edges_per_op: Mean number of edges an op; at least 1 edge is drawn for every op but the first.
        seed: Of the random numbers.
        locality: How far back an op reads, in ops, on average; small means deep, large means wide.
        resident_bytes: Upper end of a uniform draw of each op's resident (parameter) bytes.
        name: The graph's name; by default ``random:ops=...,seed=...``.
    """
    rng = np.random.default_rng(seed)
    extra = rng.poisson(max(edges_per_op - 1.0, 0.0), size=num_ops)
    readers: list[set[int]] = [set() for _ in range(num_ops)]
    for op in range(1, num_ops):
        back = rng.geometric(1.0 / locality, size=1 + int(extra[op]))
        for producer in np.maximum(op - back, 0):
            readers[int(producer)].add(op)
    flops = (10.0 ** rng.uniform(5, 9, size=num_ops)).astype(np.int64)
    sizes = (10.0 ** rng.uniform(3, 7, size=num_ops)).astype(np.int64) * 4
    resident = rng.integers(0, resident_bytes + 1, size=num_ops)
    types = np.array(["mm", "add", "relu", "convolution"])[rng.integers(0, 4, size=num_ops)]
    ops = [
        OpRecord(
            name=f"op{i}",
            type=str(types[i]),
            module=f"block{i * 20 // num_ops}",
            flops=int(flops[i]) if types[i] in ("mm", "convolution") else 0,
            bytes_accessed=int(sizes[i]) * 3,
            resident_bytes={"parameter": int(resident[i])} if resident_bytes else {},
            output_shapes=((int(sizes[i]) // 4,),),
        )
        for i in range(num_ops)
    ]
    tensors = [TensorRecord(i, int(sizes[i]), sorted(readers[i])) for i in range(num_ops)]
    return build(name or f"random:ops={num_ops},seed={seed}", ops, tensors)
