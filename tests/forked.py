"""Python processes that begin at once: each is forked from one that has imported already what they need.

A process of its own costs some seconds of a core, nearly all for importing PyTorch. `Popen` and `run` take the
arguments of `subprocess`, for commands that begin with this Python, and give such a process in some milliseconds. It
has the environment, the working directory, the files and the signals that it would have; what it does not show is what
a fresh interpreter imports, and what it says at its end. For those take `subprocess`.
"""

from __future__ import annotations

import atexit
import io
import multiprocessing
import os
import runpy
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver, reduction
from multiprocessing.process import BaseProcess, _children  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.preloaded"])

_STANDARD = 3
"""File descriptors below this are the standard input, output and error."""


def _ready() -> None:
    """Start the process that the others are forked from, if it does not run yet."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
        forkserver.ensure_running()


class Popen(subprocess.Popen):
    """As `subprocess.Popen`, for commands ``[sys.executable, ...]`` with ``-m``, ``-c`` or a script.

    The parent of the process is that which it was forked from. The numbers of files that it is given, `pass_fds`, are
    others there: where they are arguments, the new ones take their place.
    """

    def _execute_child(
        self,
        args: Sequence[Any],
        executable: None,
        preexec_fn: None,
        close_fds: bool,
        pass_fds: Sequence[int],
        cwd: str | Path | None,
        env: Mapping[str, str] | None,
        startupinfo: None,
        creationflags: int,
        shell: bool,
        p2cread: int,
        p2cwrite: int,
        c2pread: int,
        c2pwrite: int,
        errread: int,
        errwrite: int,
        restore_signals: bool,
        gid: None,
        gids: None,
        uid: None,
        umask: int,
        start_new_session: bool,
        process_group: int,
    ) -> None:
        first, *command = [os.fspath(arg) for arg in args]
        assert first == sys.executable, "only this Python can be forked"
        files = {number: end for number, end in enumerate((p2cread, c2pwrite, errwrite)) if end != -1}
        files |= {number: number for number in pass_fds}
        _ready()
        self._process = _CONTEXT.Process(
            target=_become,
            args=(
                command,
                {number: _File(end) for number, end in files.items()},
                os.fspath(cwd or os.getcwd()),
                dict(os.environ if env is None else env),
                start_new_session,
            ),
        )
        self._looking = threading.Lock()
        self._process.start()
        _children.discard(self._process)  # who forgets it does not wait for it at the end
        assert self._process.pid is not None
        self.pid = self._process.pid
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]

    def _internal_poll(self, _deadstate: int | None = None, **_: Any) -> int | None:
        with self._looking:
            if self.returncode is None:
                self.returncode = self._process.exitcode
        return self.returncode

    def _wait(self, timeout: float | None) -> int:
        until = None if timeout is None else time.monotonic() + timeout
        while self._internal_poll() is None:
            if until is not None and time.monotonic() >= until:
                assert timeout is not None
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.005)
        return self.returncode


def run(
    command: Sequence[Any],
    *,
    timeout: float = 600,
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, and return how it ended and what it said."""
    with Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd, env=env) as process:
        try:
            out, error = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, error)


class Context:
    """As `multiprocessing.get_context("spawn")`, for processes that have this one's environment."""

    Pipe = staticmethod(_CONTEXT.Pipe)

    @staticmethod
    def Process(*, target: Callable[..., object], args: tuple[Any, ...], name: str) -> BaseProcess:
        """A process that calls a function."""
        _ready()
        return _CONTEXT.Process(target=_call, args=(dict(os.environ), target, args), name=name)


def subprocess_with_forks() -> types.SimpleNamespace:
    """What a module that imports `subprocess` can be given in its place."""
    return types.SimpleNamespace(**{**vars(subprocess), "Popen": Popen})


class _File:
    """A file descriptor on its way to another process."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, (reduction.DupFd(self.number),)


def _arrived(file: Any) -> int:
    return int(file.detach())


def _call(environment: dict[str, str], target: Callable[..., object], args: tuple[Any, ...]) -> None:
    _set_environment(environment)
    target(*args)


def _set_environment(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)


def _become(
    command: list[str], files: dict[int, int], folder: str, environment: dict[str, str], new_session: bool
) -> None:
    """Do in this process what Python does with a command line."""
    os.close(forkserver._forkserver._forkserver_alive_fd)  # type: ignore[attr-defined]  # it ends with the tests
    if new_session:
        os.setsid()
    for number, here in files.items():
        if number < _STANDARD:
            os.dup2(here, number)
    for number, here in files.items():
        if number < _STANDARD:
            os.close(here)
    # Those that it has know the files that were there before.
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), write_through=True)
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), errors="backslashreplace", write_through=True)
    passed = {str(number): str(here) for number, here in files.items() if number >= _STANDARD}
    command = [passed.get(arg, arg) for arg in command]
    _set_environment(environment)
    os.chdir(folder)
    named = [str(Path(entry).resolve()) for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    sys.path[:] = list(dict.fromkeys([*named, *sys.path]))
    is_safe = command[0] == "-P"
    if is_safe:
        command = command[1:]
    how, rest = command[0], command[1:]
    try:
        if how == "-m":
            sys.argv = list(rest)
            sys.path[:0] = [] if is_safe else [os.getcwd()]
            if rest[0] == "envs.measured.child":
                sys.argv[-1] = str(os.getppid())  # it is told whom to end with
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        elif how == "-c":
            sys.argv = ["-c", *rest[1:]]
            sys.path.insert(0, "")
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(rest[0], "<string>", "exec"), main.__dict__)
        else:
            sys.argv = [how, *rest]
            sys.path.insert(0, str(Path(how).resolve().parent))
            runpy.run_path(how, run_name="__main__")
    finally:
        atexit._run_exitfuncs()
