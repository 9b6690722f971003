"""Seconds that an op takes on a device.

An op's time is the profiled one where the graph carries a number for the device's spec. Elsewhere it is a roofline:

    launch_overhead_s + max(flops / (peak * efficiency * fill), bytes_accessed / memory_bytes_per_s)

- ``peak`` is the spec's rate for the op's dtype, or float32's where the spec has none for it. (A device without a rate
  for float32 computes only in the dtypes that it names; a problem allows no other op there.)
- ``efficiency`` is the share of the peak that the op's class (`op_class`) reaches on the device.
- ``fill = flops / (flops + fill_flops)`` slows kernels that are too small to fill the device.
- The batch dimension is rounded up to the device's tile, so a batch of 33 costs as much as one of 64 on a tile of 32;
  the fill factor and the rate see the rounded FLOPs, which are what the device computes.
- An op with neither FLOPs nor bytes (a view, a parameter) takes no time, not even a launch.
- An op with neither FLOPs nor bytes that was profiled on another spec has a time that nobody knows here: it may not run
  on the device (`unknown_times`). Where it is placed all the same it takes the longest of its profiled times.

The roofline is from Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for multicore
architectures", CACM 2009, doi:10.1145/1498765.1498785; the fill factor is the half-performance length n_1/2 of Hockney
and Jesshope, "Parallel Computers", 1981, with FLOPs for length.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs.clusters.cluster import OP_CLASSES, Cluster, DeviceSpec
from graphs.computation_graph import DTYPES, ComputationGraph

PROFILE_ENDS = ("_alone", "_beside")
"""How the names end under which a measured profile has a spec's op times while others idle, and while they work."""

_PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "addbmm", "linear", "matmul", "gemm", "einsum", "dot", "mv", "addmv")
_RECURRENT = ("gru", "lstm", "rnn")


def op_class(op_type: str) -> str:
    """Which of `envs.clusters.cluster.OP_CLASSES` an op type belongs to.

    A name space and an overload are ignored, so ``"aten.addmm.default"`` is a product; a backward op is in its forward
    op's class. Operators of the ONNX standard are known too; a recurrent layer is its products.

    >>> op_class("QLinearConv"), op_class("MatMulInteger"), op_class("LSTM"), op_class("QuantizeLinear")
    ('convolution', 'product', 'product', 'other')
    >>> op_class("addmm"), op_class("convolution_backward"), op_class("scaled_dot_product_attention"), op_class("add")
    ('product', 'convolution', 'attention', 'other')
    """
    parts = op_type.lower().removeprefix("aten.").removeprefix("aten::").split(".")
    base = parts[0].strip("_").removesuffix("_backward").removeprefix("qlinear").removesuffix("integer")
    if "attention" in base:
        return "attention"
    if base.startswith(("conv", "deformconv", "causalconv")) and "convert" not in base:
        return "convolution"
    if base in (*_PRODUCTS, *_RECURRENT, "int_mm") or "grouped_mm" in base:
        return "product"
    return "other"


def op_times_s(graph: ComputationGraph, spec: DeviceSpec) -> NDArray[np.float64]:
    """Seconds that each op takes on a device, ``float64[N]``.

    Args:
        graph: The ops; profiled times under ``spec.name`` win over the formula.
        spec: The device.
    """
    flops = graph.flops.astype(np.float64)
    batch = graph.batch.astype(np.float64)
    batched = (graph.batch > 0) & (spec.tile > 1)
    rounded = np.ceil(batch / spec.tile) * spec.tile
    flops = np.where(batched, flops * (rounded / np.maximum(batch, 1.0)), flops)

    peak = np.array([spec.rate_flops_per_s(d) for d in DTYPES])
    share = np.array([spec.efficiency.get(c, 1.0) for c in OP_CLASSES])
    class_of_type = np.array([OP_CLASSES.index(op_class(t)) for t in graph.type_names], dtype=np.int64)
    rate = peak[graph.dtype] * share[class_of_type[graph.op_type]]
    # flops / (rate * fill) without the division by zero of an op without FLOPs.
    compute_s = np.where(flops > 0, (flops + spec.fill_flops) / rate, 0.0)
    memory_s = graph.bytes_accessed / spec.memory_bytes_per_s
    time_s = spec.launch_overhead_s + np.maximum(compute_s, memory_s)
    time_s[(graph.flops == 0) & (graph.bytes_accessed == 0)] = 0.0

    profiled = graph.time_s.get(spec.name)
    if profiled is not None:
        time_s = np.where(np.isnan(profiled), time_s, profiled)
    unknown = unknown_times(graph, spec)
    if unknown.any():
        time_s[unknown] = _longest_profiled_s(graph)[unknown]
    return time_s


def unknown_times(graph: ComputationGraph, spec: DeviceSpec) -> NDArray[np.bool_]:
    """Which ops cannot be given a time on a device, ``bool[N]``: profiled elsewhere, and nothing to estimate from.

    They have neither FLOPs nor bytes, take time on a spec that they were profiled on, and were not profiled on this
    one. Without a time they would run for free here.
    """
    profiled = graph.time_s.get(spec.name)
    unknown = (graph.flops == 0) & (graph.bytes_accessed == 0) & (_longest_profiled_s(graph) > 0)
    return unknown if profiled is None else unknown & np.isnan(profiled)


def unused_profiles(graph: ComputationGraph, cluster: Cluster) -> list[str]:
    """The names in `time_s` that no device of a cluster has: misspelt, or of another machine."""
    known = {device.spec.name for device in cluster.devices}
    known |= {name + end for name in known for end in PROFILE_ENDS}
    return [name for name in graph.time_s if name not in known]


def _longest_profiled_s(graph: ComputationGraph) -> NDArray[np.float64]:
    """``float64[N]``: the longest time that an op was profiled with on any spec; 0 where on none."""
    longest = np.zeros(graph.num_ops)
    for times in graph.time_s.values():
        np.fmax(longest, times, out=longest)
    return longest
