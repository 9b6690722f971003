"""Runs the command in forked children that are killed: a child has all modules at once, so that hundreds are cheap.

``python -m tests.kills.fork_server`` reads one request a line, ``{"args": [...], "cwd": "...", "kill_after_s": 0.5}``
(null: never), and answers each with one line: how it ended (an exit code, or a signal as a negative number), what it
said last, and the seconds that it took.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]
_MOST_S = 3000.0  # the first run compiles


class ForkServer:
    """The server, as a context."""

    def __enter__(self) -> ForkServer:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.kills.fork_server"],
            cwd=_ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(_ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:  # a child is still under way: the test was interrupted
            self._process.kill()
            self._process.wait()

    def run(self, args: list[str], cwd: Path, *, kill_after_s: float | None = None) -> tuple[int, str, float]:
        """Run the command; return how it ended, what it said last, and the seconds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"args": args, "cwd": str(cwd), "kill_after_s": kill_after_s}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return answer["ended"], answer["said"], answer["took_s"]


def _serve() -> None:
    for module in (
        "placement.cli.main",
        "placement.api",
        "placement.runs.measured_training",
        "torch.utils.tensorboard",
    ):
        importlib.import_module(module)  # what the verbs import when they are called

    for line in sys.stdin:
        sys.stdout.write(json.dumps(_answer(json.loads(line))) + "\n")
        sys.stdout.flush()


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    began, said = time.monotonic(), Path(request["cwd"]) / ".said"
    child = os.fork()
    if child == 0:
        os.chdir(request["cwd"])
        with open(said, "wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        from placement.cli.main import main

        try:
            code = main(request["args"])
        except SystemExit as error:
            code = int(error.code or 0)
        except BaseException:
            import traceback

            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    until = began + (_MOST_S if request["kill_after_s"] is None else request["kill_after_s"])
    while True:
        process, status = os.waitpid(child, os.WNOHANG)
        if process:
            break
        if time.monotonic() >= until:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            break
        time.sleep(0.002)
    ended = os.waitstatus_to_exitcode(status)
    return {"ended": ended, "said": said.read_text(errors="replace")[-600:], "took_s": time.monotonic() - began}


if __name__ == "__main__":
    _serve()
