"""What a step spends on its critical path, by unit; compiled, for the walk of `placement.move_search.kernel`.

The plain version is in the tests. Letters: ``N`` ops, ``U`` units, ``D`` devices.
"""

from __future__ import annotations

import numpy as np

from envs.compiling import called


@called
def _trace_back(field, chain, traced):
    """Walk the critical path back from the last op and add up, by unit, what it spends where.

    Computing goes to the unit. Where an op waited for a copy, the time from its producer's end goes half each to the
    two units, under the other's device. Where an op that was ready waited for its device, the time that the op before
    it took goes as *delayed* to that op's unit and as *waited* to the waiting one.
    """
    unit_of_op, input_offsets, input_tensors = field.unit_of_op, field.input_offsets, field.input_tensors
    producer, op_device, start_s, end_s = field.producer, chain.op_device[0], chain.start_s, chain.end_s
    arrival_s, bucket, next_in_bucket = chain.arrival_s, chain.bucket, chain.next_in_bucket
    critical_s, transfer_s = chain.critical_s, chain.transfer_s
    num_ops, num_devices = len(unit_of_op), transfer_s.shape[1]
    step_s, op = 0.0, 0
    for i in range(num_ops):
        if end_s[i] > step_s:
            step_s, op = end_s[i], i
    if step_s <= 0.0:
        return
    # Ops by when they end, in about as many buckets as ops: finds what a device ran before.
    scale = (num_ops - 1) / step_s
    bucket[:] = -1
    for i in range(num_ops):
        if end_s[i] > start_s[i]:
            b = int(end_s[i] * scale)
            next_in_bucket[i] = bucket[b]
            bucket[b] = i
    for k in range(np.int64(traced.num_sent[0])):
        tensor = np.int64(traced.tensors[traced.sent_tensor[k]])
        arrival_s[tensor * num_devices + traced.sent_to[k]] = traced.sent_end_s[k]
    for _ in range(num_ops):
        device, unit = op_device[op], unit_of_op[op]
        critical_s[unit] += end_s[op] - start_s[op]
        if start_s[op] <= 0.0:
            break
        latest_s, cause = -1.0, -1
        for i in range(input_offsets[op], input_offsets[op + 1]):
            tensor = input_tensors[i]
            maker = producer[tensor]
            at_s = end_s[maker]
            if op_device[maker] != device:
                at_s = arrival_s[np.int64(tensor) * num_devices + device]
            if at_s > latest_s:
                latest_s, cause = at_s, np.int64(maker)
        before = -1
        if latest_s < start_s[op]:
            i = np.int64(bucket[int(start_s[op] * scale)])
            while i >= 0:
                if end_s[i] == start_s[op] and op_device[i] == device:
                    before = i
                    break
                i = np.int64(next_in_bucket[i])
        if before >= 0:
            chain.waited_s[unit] += end_s[before] - start_s[before]
            chain.delayed_s[unit_of_op[before]] += end_s[before] - start_s[before]
            cause = before
        elif cause >= 0 and op_device[cause] != device:
            half_s = 0.5 * (latest_s - end_s[cause])
            transfer_s[unit, op_device[cause]] += half_s
            transfer_s[unit_of_op[cause], device] += half_s
        if cause < 0:
            break
        op = cause


@called
def _sum_up_in_turn(field, chain, traced):
    """As `_trace_back`, under the schedule ``sequential``: all that happens is on the critical path, nothing waits."""
    unit_of_op, op_device, start_s, end_s = field.unit_of_op, chain.op_device[0], chain.start_s, chain.end_s
    transfer_s, sent_end_s = chain.transfer_s, traced.sent_end_s
    num_sent = np.int64(traced.num_sent[0])
    before_s, k = 0.0, 0
    for op in range(len(unit_of_op)):
        device, unit = op_device[op], unit_of_op[op]
        while k < num_sent and sent_end_s[k] <= start_s[op]:  # sent for this op; others later, or in no time
            maker = field.producer[traced.tensors[traced.sent_tensor[k]]]
            half_s = 0.5 * (sent_end_s[k] - before_s)
            transfer_s[unit, op_device[maker]] += half_s
            transfer_s[unit_of_op[maker], device] += half_s
            before_s = sent_end_s[k]
            k += 1
        chain.critical_s[unit] += end_s[op] - start_s[op]
        before_s = end_s[op]


@called
def sum_up(field, chain, traced, in_turn):
    """Copy when ops started and ended, and sum up by unit what the step spends on its critical path."""
    for i in range(len(chain.start_s)):
        chain.start_s[i] = traced.start_s[traced.position[i]]
        chain.end_s[i] = traced.end_s[traced.position[i]]
    chain.critical_s[:] = 0.0
    chain.transfer_s[:] = 0.0
    chain.waited_s[:] = 0.0
    chain.delayed_s[:] = 0.0
    if in_turn:
        _sum_up_in_turn(field, chain, traced)
    else:
        _trace_back(field, chain, traced)
