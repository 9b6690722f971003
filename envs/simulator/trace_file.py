"""A trace as a file that chrome://tracing and https://ui.perfetto.dev open.

The file is in the "JSON Object Format" of the Trace Event Format (Google,
https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU). Times in it are microseconds, as the
format demands. There are three processes: the devices, one track each with its ops; the links, one track for each
direction that a transfer crosses; and memory, one counter a device in bytes.
"""

from __future__ import annotations

import gzip
import os
from typing import Any

import msgspec

from envs.clusters.cluster import Cluster
from envs.simulator.trace import Trace
from graphs.computation_graph import PHASES, ComputationGraph
from graphs.files import write_atomically

_DEVICES, _LINKS, _MEMORY = 1, 2, 3  # process numbers


def write_chrome_trace(path: str | os.PathLike[str], trace: Trace, graph: ComputationGraph, cluster: Cluster) -> None:
    """Write a trace for a trace viewer; the same trace gives the same bytes.

    Args:
        path: Where to; compressed where the name ends in ``.gz``.
        trace: What to write.
        graph: The graph that was simulated.
        cluster: The cluster that it was simulated on.

    Raises:
        InputError: The file cannot be written.
    """
    data = msgspec.json.encode({"traceEvents": chrome_events(trace, graph, cluster), "displayTimeUnit": "ns"})
    write_atomically(path, gzip.compress(data, mtime=0) if os.fspath(path).endswith(".gz") else data)


def chrome_events(trace: Trace, graph: ComputationGraph, cluster: Cluster) -> list[dict[str, Any]]:
    """The events of a trace in the viewer's terms; see `write_chrome_trace`."""
    events = [_name("process_name", _DEVICES, 0, "devices"), _name("process_name", _LINKS, 0, "links")]
    events.append(_name("process_name", _MEMORY, 0, "memory"))
    events += [_name("thread_name", _DEVICES, d, name) for d, name in enumerate(cluster.device_names)]
    crossed = [directions.tolist() for directions in trace.transfer_directions(cluster)]
    for direction in sorted({d for directions in crossed for d in directions}):
        events.append(_name("thread_name", _LINKS, direction, direction_name(cluster, direction)))

    start_us, end_us = trace.op_start_s * 1e6, trace.op_end_s * 1e6
    for op, device in enumerate(trace.op_device.tolist()):
        about = {"type": graph.type_names[graph.op_type[op]], "module": graph.module_names[graph.module[op]]}
        events.append(
            _slice(_DEVICES, device, graph.op_names[op], PHASES[graph.phase[op]], start_us[op], end_us[op], about)
        )
    start_us, end_us = trace.transfer_start_s * 1e6, trace.transfer_end_s * 1e6
    for k, tensor in enumerate(trace.transfer_tensor.tolist()):
        producer = graph.tensor_producer[tensor]
        about = {
            "bytes": int(graph.tensor_bytes[tensor]),
            "from": cluster.device_names[trace.transfer_source[k]],
            "to": cluster.device_names[trace.transfer_destination[k]],
        }
        for direction in crossed[k]:
            name, phase = graph.op_names[producer], PHASES[graph.phase[producer]]
            events.append(_slice(_LINKS, direction, name, phase, start_us[k], end_us[k], about))
    for device, name in enumerate(cluster.device_names):
        times_s, sizes = trace.memory_time_s[device].tolist(), trace.memory_bytes[device].tolist()
        for time_s, size in zip(times_s, sizes, strict=True):
            counter = {"ph": "C", "pid": _MEMORY, "tid": device, "name": name, "ts": time_s * 1e6}
            events.append({**counter, "args": {"bytes": size}})
    return events


def direction_name(cluster: Cluster, direction: int) -> str:
    """What people call a link direction, for example ``"gpu:0 → switch"``."""
    link = cluster.links[direction // 2]
    return f"{link.a} → {link.b}" if direction % 2 == 0 else f"{link.b} → {link.a}"


def _name(kind: str, process: int, track: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": process, "tid": track, "args": {"name": name}}


def _slice(
    process: int, track: int, name: str, phase: str, start_us: float, end_us: float, about: dict[str, Any]
) -> dict[str, Any]:
    place = {"ph": "X", "pid": process, "tid": track, "name": name, "cat": phase}
    return {**place, "ts": float(start_us), "dur": float(end_us - start_us), "args": about}
