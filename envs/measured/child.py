"""The process that measures: it loads a model, runs placements of its step, and answers how long they took.

Started by `envs.measured.process` as ``python -m envs.measured.child``; it ends when its parent closes the pipe, so it
outlives no run, however that ends.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import signal
import sys
import threading
import time
from queue import SimpleQueue
from typing import BinaryIO

import msgspec
import numpy as np

from envs.measured import protocol
from graphs.errors import InputError

_PR_SET_PDEATHSIG = 1
"""Of `prctl(2)`."""

_SHARE_OF_LIMIT = 0.9
"""A step is given up here before the parent loses patience, so that the reason can be told."""

_SHARE_OF_MEMORY = 0.9
"""Of the memory that is free: to fail at an allocation is better than to be killed, or to have others killed."""


def main() -> None:
    """Serve requests until the parent closes the pipe."""
    requests = os.fdopen(int(sys.argv[1]), "rb")
    replies = os.fdopen(int(sys.argv[2]), "wb")
    end_with_the_parent(int(sys.argv[3]))
    _be_the_first_to_go()
    # A worker that comes back from a kernel must not wait long for another that runs Python.
    sys.setswitchinterval(1e-4)
    waiting: SimpleQueue[protocol.Request] = SimpleQueue()
    threading.Thread(target=_receive, args=(requests, waiting), daemon=True).start()
    server = _Server()
    while True:
        reply = server.answer(waiting.get())
        protocol.write(replies, reply)
        if isinstance(reply, protocol.Failed) and reply.is_last:
            os._exit(1)  # a worker hangs: nothing can be joined


def _receive(requests: BinaryIO, waiting: SimpleQueue[protocol.Request]) -> None:
    """Take requests in, also while a step runs; the end of the pipe ends the process at once."""
    while True:
        data = protocol.read(requests)
        if not data:
            os._exit(0)
        waiting.put(msgspec.msgpack.decode(data, type=protocol.Request))


def end_with_the_parent(parent: int) -> None:
    """Let the kernel end this process when the program that started it ends, and what it forks when it ends itself.

    The end of the pipe says so, too, but not to a process whose interpreter is held by an op that never returns.
    """
    _die_with_parent()
    os.register_at_fork(after_in_child=_die_with_parent)
    if os.getppid() != parent:  # it ended before
        os._exit(0)


def _die_with_parent() -> None:
    """Ask Linux for a SIGKILL when the parent ends; other systems have no such thing."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _be_the_first_to_go() -> None:
    """Where memory runs out, this process fails, and not the training."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass  # not Linux, or not allowed


def _limit_memory() -> None:
    """Let an allocation fail that the machine has no room for."""
    try:
        with open("/proc/meminfo") as file:
            numbers = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in file}
        with open("/proc/self/status") as file:
            own = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmData"))
    except (OSError, StopIteration, ValueError):
        return
    limit = own + int(_SHARE_OF_MEMORY * numbers["MemAvailable"])
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


class _Server:
    """Answers requests, one after the other."""

    def __init__(self) -> None:
        self._load: protocol.Load | None = None

    def answer(self, request: protocol.Request) -> protocol.Reply:
        """Do what is asked; whatever goes wrong becomes a reply."""
        try:
            if isinstance(request, protocol.Load):
                self._load = request
                return self._start(request)
            if isinstance(request, protocol.Plain):
                return _run_plain(request)
            return self._measure(request)
        except InputError as error:
            return protocol.Failed(str(error), is_input=True)
        except MemoryError:
            return protocol.Failed("out of memory")
        except Exception as error:
            return protocol.Failed(failure_reason(error, f"{type(error).__name__}: ")[:500])

    def _start(self, load: protocol.Load) -> protocol.Reply:
        sys.path[:] = load.import_path
        from envs.measured.compiled.code import check_can_compile
        from envs.measured.engine import Engine
        from envs.measured.machine import parse_devices
        from graphs.capture import batch_tensors, capture_program
        from graphs.capture.state import named_state
        from graphs.sources import load_model

        devices = parse_devices(load.devices)
        if load.compile_regions:
            check_can_compile(devices)
        options = load_model(load.source)
        model, batch = options.pop("model"), options.pop("example_batch")
        program = capture_program(model, batch, **options)
        if program.graph.sha256 != load.graph_sha256:
            return protocol.Failed(
                f"source '{load.source}' gives another graph ({program.graph.sha256[:12]}) than the one that is placed "
                f"({load.graph_sha256[:12]}); place this graph again",
                is_input=True,
            )
        tensors = named_state(model, options.get("loss"), training=program.training)
        self._inputs = batch_tensors(batch, program.training)
        self._engine = Engine(
            program, devices, tensors, remaining_path_s=np.frombuffer(load.remaining_path_s, dtype=np.float64)
        )
        if all(device.kind == "cpu" for device in devices):
            _limit_memory()
        gc.collect()
        gc.freeze()
        return protocol.Ready()

    def _measure(self, request: protocol.Measure) -> protocol.Reply:
        from envs.measured.engine import StepError

        began_s = time.perf_counter()
        how = request.protocol
        dropped = how.dropped + request.compile_regions  # the first step after compiling looks at how results lie
        placement = np.frombuffer(request.placement, dtype=np.int32)
        times: list[float] = []
        peak = np.zeros(len(self._engine.devices), dtype=np.int64)
        starts: list[bytes] = []
        ends: list[bytes] = []
        try:
            self._engine.place(placement, schedule=request.schedule, compile_regions=request.compile_regions)
            wanted, least = dropped + how.short_steps, dropped + how.least_steps
            while len(times) < wanted:
                spent_s = time.perf_counter() - began_s - self._engine.compile_s
                left_s = _SHARE_OF_LIMIT * request.time_limit_s - spent_s
                if len(times) >= least and left_s < 2 * times[-1]:
                    break
                step = self._engine.step(self._inputs, time_limit_s=max(left_s, 0.0))
                times.append(step.step_time_s)
                if request.keep_tasks and len(times) > dropped:
                    starts.append(step.task_start_s.tobytes())
                    ends.append(step.task_end_s.tobytes())
                peak = np.maximum(peak, step.peak_memory_bytes)
                if len(times) > dropped and step.step_time_s >= how.short_s:
                    wanted = dropped + how.steps
        except StepError as error:
            return protocol.Failed(failure_reason(error), is_last=self._engine.timed_out)
        copies = self._copies() if request.keep_tasks else b""
        return protocol.Measured(times[dropped:], peak.tolist(), b"".join(starts), b"".join(ends), copies)

    def _copies(self) -> bytes:
        plan = self._engine.plan
        assert plan is not None
        rows = [
            (plan.program.value_op[c.value], plan.place_device[c.source], c.device, plan.place_bytes[c.place])
            for c in plan.copies
        ]
        return np.array(rows, dtype=np.int64).reshape(len(rows), 4).tobytes()


def _run_plain(request: protocol.Plain) -> protocol.Reply:
    """Run a step as PyTorch itself does, on one device."""
    sys.path[:] = request.import_path
    from envs.measured.machine import parse_devices
    from envs.measured.plain import make_plain_step, run_pinned, timed
    from graphs.sources import load_model

    began_s, how = time.perf_counter(), request.protocol
    (device,) = parse_devices(request.device)
    options = load_model(request.source)
    options.pop("name", None)
    where = None if device.kind == "cpu" else f"cuda:{device.index}"
    # What is compiled for the first step may be compiled again once the optimizer has a state.
    dropped = how.dropped + 2 * request.is_compiled

    def run() -> list[float]:
        step = make_plain_step(
            options.pop("model"),
            options.pop("example_batch"),
            options.pop("loss", None),
            is_compiled=request.is_compiled,
            device=where,
            **options,
        )
        times: list[float] = []
        wanted, least = dropped + how.short_steps, dropped + how.least_steps
        while len(times) < wanted:
            left_s = _SHARE_OF_LIMIT * request.time_limit_s - (time.perf_counter() - began_s)
            if len(times) >= least and left_s < 2 * times[-1]:
                break
            times.append(timed(step))
            if len(times) > dropped and times[-1] >= how.short_s:
                wanted = dropped + how.steps
        return times[dropped:]

    return protocol.Measured(run_pinned(device, run), [])


def failure_reason(error: Exception, kind: str = "") -> str:
    """Why a step failed, with memory that was short said first; `kind` is said before what the error says."""
    text = f"{kind}{' '.join(str(error).split())}"
    if "can't allocate memory" in text or "out of memory" in text or "MemoryError" in text or "bad_alloc" in text:
        return f"out of memory: {text}"
    return text


if __name__ == "__main__":
    main()
