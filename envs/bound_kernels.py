"""The compiled loops of `envs.bounds`: the least time before and behind each op on each device.

A loop of Python takes seconds for 100,000 tensors, which a time limit of two seconds has not.

Letters: ``N`` ops, ``E`` edges, ``T`` tensors, ``G`` groups, ``D`` devices.
"""

from __future__ import annotations

import numpy as np

from envs.compiling import compiled, inlined


@inlined
def _transfer_s(source, to, tensor, latency_s, s_per_byte, tensor_bytes, given_s):
    """Seconds that a tensor takes from a device to a device: by its bytes, or as the graph says; none to itself."""
    if np.isnan(given_s[tensor]):
        return latency_s[source, to] + tensor_bytes[tensor] * s_per_byte[source, to]
    return given_s[tensor] if source != to else 0.0


@compiled
def heads(
    producer, offsets, readers, group_of_op, allowed, op_time_s, latency_s, s_per_byte, tensor_bytes, given_s, end_s,
    arrival_s, heads_s,
):  # fmt: skip
    """Fill `heads_s`, ``float64[N, D]`` of zeros, with what no op can start on a device before.

    `op_time_s` is ``float64[D, N]``, `allowed` ``bool[G, D]``; `end_s` and `arrival_s` are ``float64[D]`` to work in.
    """
    devices = len(end_s)
    for tensor in range(len(producer)):
        op = producer[tensor]
        group = group_of_op[op]
        for d in range(devices):
            end_s[d] = heads_s[op, d] + op_time_s[d, op] if allowed[group, d] else np.inf
        for d in range(devices):
            arrival_s[d] = np.inf
            for e in range(devices):
                sent_s = end_s[e] + _transfer_s(e, d, tensor, latency_s, s_per_byte, tensor_bytes, given_s)
                arrival_s[d] = min(arrival_s[d], sent_s)
        for i in range(offsets[tensor], offsets[tensor + 1]):
            reader = readers[i]
            there_s = end_s if group_of_op[reader] == group else arrival_s
            for d in range(devices):
                heads_s[reader, d] = max(heads_s[reader, d], there_s[d])


@compiled
def tails(
    producer, offsets, readers, group_of_op, allowed, op_time_s, latency_s, s_per_byte, tensor_bytes, given_s, rest_s,
    tails_s,
):  # fmt: skip
    """Fill `tails_s`, ``float64[N, D]`` of zeros, with what the step lasts at least from an op's end on a device.

    Arguments as of `heads`.
    """
    devices = len(rest_s)
    for i in range(len(producer)):
        tensor = len(producer) - 1 - i
        op = producer[tensor]
        group = group_of_op[op]
        for e in range(offsets[tensor], offsets[tensor + 1]):
            reader = readers[e]
            theirs = group_of_op[reader]
            for d in range(devices):
                rest_s[d] = op_time_s[d, reader] + tails_s[reader, d] if allowed[theirs, d] else np.inf
            for d in range(devices):
                least_s = rest_s[d]
                if theirs != group:
                    least_s = np.inf
                    for to in range(devices):
                        sent_s = _transfer_s(d, to, tensor, latency_s, s_per_byte, tensor_bytes, given_s)
                        least_s = min(least_s, sent_s + rest_s[to])
                tails_s[op, d] = max(tails_s[op, d], least_s)
