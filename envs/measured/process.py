"""The parent's side of measuring: a process of its own runs the placements, so that none can take the training down.

A measurement that hangs, crashes or eats all memory costs that process; it is replaced for the next one. Nothing is
pickled: both sides exchange the structs of `envs.measured.protocol` over pipes.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from envs.measured import protocol
from envs.measured.machine import RealDevice
from envs.targets import target_of
from graphs.errors import InputError
from graphs.sources import runs_code

START_LIMIT_S = 600.0
"""Seconds that building and capturing the model may take."""

COMPILE_LIMIT_S = 600.0
"""Seconds that compiling may take: the regions of a placement, or a whole step by `torch.compile`."""

_KEEP_MEMORY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
"""For the C library's allocator: freed memory is used again, not given back to the system and asked for anew, page by
page, in every step, which costs more than many an op and makes two threads wait for each other."""


_LOOK_EVERY_S = 0.25
"""How often it is asked whether a process that says nothing is still there: what it forked may hold its pipe open."""

_MOST_STDERR = 64_000
"""Bytes of what a process says that are kept: the last ones."""

_starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="measuring")
"""Starts the processes. Each asks the kernel to be killed when the thread that started it ends, as this one does only
with the program."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: globals().update(_starter=ThreadPoolExecutor(max_workers=1)))


class MeasuringProcess:
    """Measures placements of one graph on real devices, in a process that is started when it is first needed.

    To be closed, or used in a ``with`` statement; where that is forgotten, the process ends with this object or with
    the program, however it ends. One thread at a time may ask; others wait.

    Args:
        source: A workload of the zoo or ``python:module:function``: what the process builds the model from.
        graph_sha256: Of the graph that placements are for.
        devices: Where to run.
        remaining_path_s: ``float64[N]``, for the schedule ``priority``, see `envs.simulator.SimulatorInput`.
        start_limit_s: Seconds that the start may take.
        compile_regions: It will be asked for regions that are compiled; where that cannot be, the start says so.

    Attributes:
        starts: How many processes were started so far.
    """

    def __init__(
        self,
        source: str,
        graph_sha256: str,
        devices: Sequence[RealDevice],
        remaining_path_s: NDArray[np.float64],
        *,
        start_limit_s: float = START_LIMIT_S,
        compile_regions: bool = False,
    ) -> None:
        self.source = source
        self.devices = tuple(devices)
        self.starts = 0
        self._load = protocol.Load(
            source,
            graph_sha256,
            [device.name for device in devices],
            np.ascontiguousarray(remaining_path_s, dtype=np.float64).tobytes(),
            _import_path(source),
            compile_regions,
        )
        self._start_limit_s = start_limit_s
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._closed = False

    def __enter__(self) -> MeasuringProcess:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def start(self) -> None:
        """Start the process now, rather than with the first measurement.

        Raises:
            InputError: The model cannot be built or its graph is another one.
        """
        with self._lock:
            self._running()

    def measure(
        self,
        op_placement: NDArray[np.integer],
        *,
        schedule: str,
        time_limit_s: float,
        how: protocol.Protocol | None = None,
        keep_tasks: bool = False,
        compile_regions: bool = False,
    ) -> protocol.Measured | protocol.Failed:
        """Run a placement of ops, ``int[N]``; a failure of whatever kind is an answer, too.

        Args:
            op_placement: Device numbers.
            schedule: Which ready op a device runs first.
            time_limit_s: Seconds that it may take, not counting the start of a process where one is needed.
            how: How many steps.
            keep_tasks: Ask when each op and copy of each step that counts started and ended.
            compile_regions: Compile the regions first, which takes its own time, up to `COMPILE_LIMIT_S`.

        Raises:
            InputError: The model cannot be built, the placement is not one of its graph, or regions cannot be compiled.
        """
        if target_of(schedule) != "engine":
            raise InputError(
                f"the engine does not run steps under the schedule '{schedule}', which is of another target; take the "
                "placement there, or place the graph for the engine"
            )
        request = protocol.Measure(
            np.ascontiguousarray(op_placement, dtype=np.int32).tobytes(),
            schedule,
            time_limit_s,
            how or protocol.Protocol(),
            keep_tasks,
            compile_regions,
        )
        with self._lock:
            child = self._running()
            reply = child.ask(request, time_limit_s + COMPILE_LIMIT_S * compile_regions)
            if isinstance(reply, protocol.Failed):
                if reply.is_last:
                    self._stop()
                if reply.is_input:
                    raise InputError(reply.reason)
            assert not isinstance(reply, protocol.Ready)
            return reply

    def close(self) -> None:
        """End the process; measuring afterwards is refused."""
        self._closed = True
        with self._lock:
            self._stop()

    @property
    def process_id(self) -> int | None:
        """Of the process, None where none runs."""
        return None if self._child is None else self._child.process.pid

    def _running(self) -> _Child:
        if self._closed:
            raise InputError("the measuring process was closed; make a new measured problem")
        if self._child is not None:
            return self._child
        child = self._child = _Child()
        self.starts += 1
        try:
            reply = child.ask(self._load, self._start_limit_s)
        except BaseException:
            self._stop()
            raise
        if isinstance(reply, protocol.Failed):
            self._stop()
            raise InputError(f"graph '{self.source}' cannot be run: {reply.reason}")
        return child

    def _stop(self) -> None:
        if self._child is not None:
            self._child.stop()
            self._child = None


def measure_plain(
    source: str,
    device: RealDevice,
    *,
    is_compiled: bool,
    time_limit_s: float,
    how: protocol.Protocol | None = None,
) -> protocol.Measured | protocol.Failed:
    """Run a step as PyTorch itself does, in a process that ends with this; a failure is an answer, too.

    Args:
        source: A workload of the zoo or ``python:module:function``.
        device: Where; a ``cpu`` device computes with a thread for each of its cores.
        is_compiled: By `torch.compile`; the time that this takes does not count.
        time_limit_s: Seconds for all of it, building and compiling included.
        how: How many steps.

    Raises:
        InputError: The model cannot be built.
    """
    request = protocol.Plain(
        source, device.name, is_compiled, time_limit_s, how or protocol.Protocol(), _import_path(source)
    )
    child = _Child()
    try:
        reply = child.ask(request, time_limit_s)
    finally:
        child.stop()
    if isinstance(reply, protocol.Failed) and reply.is_input:
        raise InputError(f"graph '{source}' cannot be run: {reply.reason}")
    assert not isinstance(reply, protocol.Ready)
    return reply


def _import_path(source: str) -> list[str]:
    """Where the process looks for modules: in the working directory only where the source is a function there."""
    path = [*sys.path, ""] if runs_code(source) else sys.path
    return [os.getcwd() if entry == "" else entry for entry in dict.fromkeys(path)]


class _Child:
    """A running process and the pipes to it."""

    def __init__(self) -> None:
        request_read, request_write = os.pipe()
        reply_read, reply_write = os.pipe()
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        arguments = [str(request_read), str(reply_write), str(os.getpid())]
        self.process = _starter.submit(
            subprocess.Popen,
            [sys.executable, "-P", "-m", "envs.measured.child", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(request_read, reply_write),
            env={**os.environ, **_KEEP_MEMORY, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is for the parent, which then closes the pipe; and what it forks ends, too
        ).result()
        assert self.process.stderr is not None
        self._said = _LastWords(self.process.stderr)
        os.close(request_read)
        os.close(reply_write)
        self._requests: BinaryIO = os.fdopen(request_write, "wb")
        self._replies: int = reply_read
        os.set_blocking(reply_read, False)
        self._end = weakref.finalize(self, _end, self.process, self._requests, reply_read)

    def ask(self, request: protocol.Request, time_limit_s: float) -> protocol.Reply:
        """Send a request and wait for the reply; a process that dies or is late has failed, and is ended."""
        until_s = time.monotonic() + time_limit_s
        try:
            protocol.write(self._requests, request)
            data = self._receive(until_s)
        except (BrokenPipeError, EOFError):
            return protocol.Failed(self._death(), is_last=True)
        except TimeoutError:
            return protocol.Failed(
                f"it was not done after {time_limit_s:g} s, and the measuring process was ended", is_last=True
            )
        return msgspec.msgpack.decode(data, type=protocol.Reply)

    def stop(self) -> None:
        """End the process and wait for its end."""
        self._end()

    def _receive(self, until_s: float) -> bytes:
        """One message.

        Raises:
            TimeoutError: It did not come in time.
            EOFError: The process closed the pipe, or ended.
        """
        received = b""
        wanted = protocol.LENGTH_BYTES
        with selectors.DefaultSelector() as selector:
            selector.register(self._replies, selectors.EVENT_READ)
            while len(received) < wanted:
                left_s = until_s - time.monotonic()
                if not selector.select(min(max(left_s, 0.0), _LOOK_EVERY_S)):
                    if left_s <= 0:
                        raise TimeoutError
                    if self.process.poll() is not None and not selector.select(0.0):
                        raise EOFError
                    continue
                data = os.read(self._replies, 1 << 20)
                if not data:
                    raise EOFError
                received += data
                if len(received) >= protocol.LENGTH_BYTES:
                    length = int.from_bytes(received[: protocol.LENGTH_BYTES], "big")
                    wanted = protocol.LENGTH_BYTES + length
        return received[protocol.LENGTH_BYTES :]

    def _death(self) -> str:
        """How the process ended, and the last that it said."""
        try:
            code = self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return "the measuring process closed its pipe"
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            hint = ", as the kernel does where memory runs out" if -code == signal.SIGKILL else ""
            text = f"the measuring process was killed by {name}{hint}"
        else:
            text = f"the measuring process ended with status {code}"
        said = self._said.text().split("\n")
        last = next((line.strip() for line in reversed(said) if line.strip()), "")
        return f"{text}; it said: {last[:200]}" if last else text


class _LastWords:
    """Takes in what a process says, however much that is, and keeps the end of it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._kept = b""
        self._thread = threading.Thread(target=self._take, args=(stream,), name="measuring-stderr", daemon=True)
        self._thread.start()

    def _take(self, stream: IO[bytes]) -> None:
        with stream:
            while part := os.read(stream.fileno(), 1 << 16):
                self._kept = (self._kept + part)[-_MOST_STDERR:]

    def text(self) -> str:
        """What was kept; the process has ended, but what it forked may still say something, and is not waited for."""
        self._thread.join(timeout=1.0)
        return self._kept.decode(errors="replace")


def _end(process: subprocess.Popen[bytes], requests: BinaryIO, replies: int) -> None:
    """Kill a process with all that it started and free what belongs to it."""
    started = _descendants(process.pid)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # its session's group; also after its own end
    process.kill()
    process.wait()
    for process_id in started:  # those that made a session of their own
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process_id, signal.SIGKILL)
    with contextlib.suppress(OSError):  # what was not sent has no reader any more
        requests.close()
    os.close(replies)


def _descendants(process_id: int) -> list[int]:
    """What a process started, and what that started, as Linux tells; elsewhere none."""
    found: list[int] = []
    waiting = [process_id]
    while waiting:
        parent = waiting.pop()
        try:
            threads = os.listdir(f"/proc/{parent}/task")
        except OSError:
            continue
        for thread in threads:
            try:
                with open(f"/proc/{parent}/task/{thread}/children") as file:
                    children = [int(number) for number in file.read().split()]
            except OSError:
                continue
            found += children
            waiting += children
    return found
