"""Faults that are made on purpose, and what became of the work."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import psutil

import placement
from envs.problem import PlacementProblem
from placement.placers.base import Budget
from placement.registry import PLACERS
from placement.results.comparison import Comparison, compare_placers
from placement.runs.row_jobs import row_source
from placement.workers import Done, Job, Shared, Workers

ROOT = Path(__file__).resolve().parents[2]

_TELL_EVERY_S, _START_LIMIT_S = 20.0, 600.0


@dataclass(frozen=True)
class Seen:
    """What came of some faults.

    Attributes:
        what: Was done to whom.
        faults: How many there were.
        outcome: In words.
        seconds: That it took, and without faults.
        ok: Whether nothing was lost or counted twice, and all ended in time.
    """

    what: str
    faults: str
    outcome: str
    seconds: str
    ok: bool


class Dying:
    """Workers that are killed over the jobs that they are given, so many times in all.

    Args:
        workers: Whose processes are killed; opened with the package ``scripts``.
        folder: An empty one.
        kills: In all.
        most: For each job.
        seed: Draws which jobs, and when.
    """

    def __init__(self, workers: Workers, folder: Path, *, kills: int, most: int, seed: int) -> None:
        self.count, self.is_here = workers.count, workers.is_here
        self.attempts = self.jobs = 0
        self._told_s = time.monotonic()
        self._begun: dict[str, tuple[int, int]] = {}
        self._workers, self._folder, self._left, self._most, self._seed = workers, folder, kills, most, seed
        self._rng = random.Random(seed)

    @property
    def deaths(self) -> list[str]:
        """A name for each worker that was killed."""
        return sorted(path.name for path in self._folder.iterdir())

    def hosts(self) -> list[str]:
        """As the workers say."""
        return self._workers.hosts()

    def load_first(self, function: str, argument: str) -> None:
        """As the workers do."""
        self._workers.load_first(function, argument)

    def share(self, content: bytes, decoder: str) -> Shared:
        """As the workers do."""
        return self._workers.share(content, decoder)

    def forget(self, shared: Shared) -> None:
        """As the workers do."""
        self._workers.forget(shared)

    def run(self, jobs: Iterable[Job]) -> Iterator[Done]:
        """As the workers do, some of whom die."""
        for done in self._workers.run(self._dying(job) for job in jobs):
            self.attempts += done.attempts
            number, deaths = self._begun.pop(done.key)  # who has answered before it dies is not asked again
            self._left += deaths - len(list(self._folder.glob(f"job{number}.*")))
            if time.monotonic() - self._told_s > _TELL_EVERY_S:
                self._told_s = time.monotonic()
                print(f"{self.jobs} jobs, {len(self.deaths)} workers killed", file=sys.stderr, flush=True)
            yield done

    def close(self) -> None:
        """End the workers."""
        self._workers.close()

    def __enter__(self) -> Self:
        """These."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the workers."""
        self.close()

    def _dying(self, job: Job) -> Job:
        deaths = min(self._rng.randint(0, self._most), self._left)
        self._left -= deaths
        self.jobs += 1
        self._begun[job.key] = self.jobs, deaths
        arguments: dict[str, Any] = {
            "function": job.function,
            "arguments": dict(job.arguments),
            "folder": str(self._folder),
        }
        arguments |= {"name": f"job{self.jobs}", "deaths": deaths, "seed": self._seed}
        return replace(job, function="scripts.many_workers.jobs:do_and_die", arguments=arguments)


def kill_in_training(
    problem: PlacementProblem, workers: Workers, folder: Path, *, kills: int, updates: int, seed: int = 0
) -> Seen:
    """Train, while workers are killed over the chains' legs; compare with a training without workers."""
    (folder / "deaths").mkdir()
    began = time.perf_counter()
    placement.train(problem, updates=updates, seed=seed, out=folder / "alone")
    alone_s = time.perf_counter() - began
    dying = Dying(workers, folder / "deaths", kills=kills, most=12, seed=seed)
    numbers: list[int] = []
    began = time.perf_counter()
    placement.train(
        problem,
        updates=updates,
        seed=seed,
        out=folder / "faulty",
        workers=dying,
        on_update=lambda stats: numbers.append(stats.update),
    )
    took_s = time.perf_counter() - began
    same = len({(folder / run / "placement.json").read_bytes() for run in ("alone", "faulty")}) == 1
    evaluations = {_learned_evaluations(folder / run) for run in ("alone", "faulty")}
    once = numbers == list(range(1, updates + 1)) and len(evaluations) == 1
    deaths = dying.deaths
    answering = sum(name.endswith("answering") for name in deaths)
    outcome = f"{updates} updates, each once; placement.json {'the same, byte for byte' if same else 'ANOTHER'}"
    return Seen(
        f"workers killed during a training ({workers.count} workers)",
        f"{len(deaths)} kills, {answering} while answering",
        outcome if once else f"updates {numbers[-1:]} WRONG",
        f"{took_s:.0f} s; {alone_s:.0f} s without workers or faults",
        same and once and dying.attempts - dying.jobs <= len(deaths),
    )


def kill_in_comparison(
    problem: PlacementProblem,
    workers: Workers,
    folder: Path,
    *,
    kills: int,
    evaluations: int,
    seed: int = 0,
    names: Sequence[str] = tuple(PLACERS),
) -> Seen:
    """Compare placers, while workers are killed over the rows; compare with rows that are made here."""
    (folder / "deaths").mkdir()
    infos = [PLACERS[name] for name in names if not PLACERS[name].exact]
    budget = Budget(evaluations=evaluations)
    began = time.perf_counter()
    alone = compare_placers(problem, infos, budget=budget, seed=seed)
    alone_s = time.perf_counter() - began
    dying = Dying(workers, folder / "deaths", kills=kills, most=15, seed=seed)
    counts: list[int] = []
    began = time.perf_counter()
    faulty = compare_placers(
        problem,
        infos,
        budget=budget,
        seed=seed,
        source=row_source(dying),
        on_row=lambda comparison: counts.append(len(comparison.rows)),
    )
    took_s = time.perf_counter() - began
    same = _shown(alone) == _shown(faulty) and counts == list(range(1, len(alone.rows) + 1))
    deaths = dying.deaths
    answering = sum(name.endswith("answering") for name in deaths)
    return Seen(
        f"workers killed during a comparison ({workers.count} workers)",
        f"{len(deaths)} kills, {answering} while answering",
        f"{len(faulty.rows)} rows, each once, {'the same' if same else 'OTHERS'}",
        f"{took_s:.0f} s; {alone_s:.0f} s without workers or faults",
        same,
    )


def _shown(comparison: Comparison) -> list[tuple[Any, ...]]:
    return [
        (row.placer, row.step_time_s, row.evaluations, None if row.placement is None else row.placement.tobytes())
        for row in comparison.rows
    ]


def _learned_evaluations(run_dir: Path) -> int:
    rows = json.loads((run_dir / "comparison.json").read_bytes())["rows"]
    return int(next(row["evaluations"] for row in rows if row["placer"] == "reinforce"))


def kill_drivers(folder: Path, *, kills: int, updates: int, seed: int = 0) -> list[Seen]:
    """Kill the command again and again, and start it again: a training is resumed, a comparison has its file."""
    graph, cluster = "rnnlm", "k80x2"
    train = ["train", graph, "--cluster", cluster, "--updates", str(updates), "--seed", "3"]
    rng = random.Random(seed)
    assert _command([*train, "--out", str(folder / "alone")]).wait() == 0
    command, killed, left = [*train, "--out", str(folder / "faulty"), "--workers", "2"], 0, 0
    began = time.perf_counter()
    while True:
        code, orphans = _killed_after(command, rng.uniform(3.0, 30.0) if killed < kills else None)
        left += orphans
        if code == 0:
            break
        killed += 1
        if (folder / "faulty" / "config.json").exists():
            command = ["train", "--resume", str(folder / "faulty"), "--workers", "2"]
    took_s = time.perf_counter() - began
    same = len({(folder / run / "placement.json").read_bytes() for run in ("alone", "faulty")}) == 1
    same = same and len({_learned_evaluations(folder / run) for run in ("alone", "faulty")}) == 1
    training = Seen(
        "driver of a training killed, and resumed",
        f"{killed} kills",
        f"placement.json {'the same, byte for byte' if same else 'ANOTHER'}; workers left behind: {left}",
        f"{took_s:.0f} s",
        same and left == 0,
    )
    names = "single_device,heft,etf,peft,annealing,local_search,genetic,reinforce"
    compare = ["compare", graph, "--cluster", cluster, "--placers", names, "--time-limit-s", "3"]
    compare += ["--json", str(folder / "rows.json"), "--workers", "2"]
    killed = left = 0
    began = time.perf_counter()
    while True:
        code, orphans = _killed_after(compare, rng.uniform(3.0, 12.0) if killed < kills else None)
        left += orphans
        if code == 0:
            break
        killed += 1
    rows = [row["placer"] for row in json.loads((folder / "rows.json").read_bytes())["rows"]]
    once = sorted({name.partition(":")[0] for name in rows}) == sorted(names.split(",")) and len(set(rows)) == len(rows)
    comparison = Seen(
        "driver of a comparison killed, and started again",
        f"{killed} kills",
        f"{len(rows)} rows, {'each once' if once else 'NOT each once'}; workers left behind: {left}",
        f"{time.perf_counter() - began:.0f} s",
        once and left == 0,
    )
    return [training, comparison]


def _command(args: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "placement.cli", *args],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _killed_after(args: list[str], seconds: float | None) -> tuple[int, int]:
    """The exit status of a command that is killed after some seconds, and how many of its workers outlived it."""
    running = _command(args)
    try:
        return running.wait(seconds), 0
    except subprocess.TimeoutExpired:
        children = psutil.Process(running.pid).children(recursive=True)
        running.kill()
        code = running.wait()
        return code, len(psutil.wait_procs(children, timeout=20.0)[1])


class Proxy:
    """Passes on what goes to a port of this machine, until it is told to stall.

    Args:
        port: Where it passes it on to.
    """

    def __init__(self, port: int) -> None:
        self._listens = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listens.getsockname()[1]
        self._to, self._goes = port, threading.Event()
        self._goes.set()
        threading.Thread(target=self._accept, daemon=True).start()

    def stall(self) -> None:
        """Pass nothing on, and say nothing of it."""
        self._goes.clear()

    def go_on(self) -> None:
        """Pass on again, what came meanwhile first."""
        self._goes.set()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                one, _ = self._listens.accept()
                other = socket.create_connection(("127.0.0.1", self._to))
                for pair in ((one, other), (other, one)):
                    threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while content := one.recv(65536):
                self._goes.wait()
                other.sendall(content)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def ray_cluster(nodes: int) -> Iterator[tuple[int, int, list[psutil.Process]]]:
    """A Ray of some nodes of one core on this machine; its port, that of Ray's client, and each node's process."""
    ray = str(Path(sys.executable).with_name("ray"))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    os.environ["RAY_AUTH_MODE"] = "disabled"  # those who join it ask for no token either
    port, client_port = _free_port(), _free_port()
    begun: list[subprocess.Popen[bytes]] = []

    def start(*args: str) -> None:
        command = [ray, "start", "--block", "--num-cpus=1", "--node-ip-address=127.0.0.1", *args]
        quiet = subprocess.DEVNULL
        begun.append(subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet))

    head = ["--head", "--include-dashboard=false", f"--port={port}", f"--ray-client-server-port={client_port}"]
    start(*head)
    try:
        until = time.monotonic() + _START_LIMIT_S
        while not (_answers(port) and _answers(client_port)):
            if time.monotonic() > until:
                raise TimeoutError(f"Ray has not begun within {_START_LIMIT_S:g} s")
            if begun[0].poll() is not None:  # on a busy machine it gives up its own parts before they have begun
                begun.pop()
                start(*head)
            time.sleep(0.2)
        for _ in range(nodes - 1):
            start(f"--address=127.0.0.1:{port}")
        yield port, client_port, [psutil.Process(node.pid) for node in begun]
    finally:
        for node in begun:
            children = psutil.Process(node.pid).children(recursive=True)
            for each in children:
                with contextlib.suppress(psutil.Error):
                    each.kill()
            node.kill()
            node.wait()


def signal_node(node: psutil.Process, number: signal.Signals) -> None:
    """Send a signal to all processes of a node: stopped, it is a host that hangs."""
    for each in (node, *node.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            each.send_signal(number)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


def _answers(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def doubles(workers: Workers, count: int, seconds: float, during: Callable[[int], None]) -> tuple[bool, float]:
    """Do jobs that wait, while something is done to the workers; whether each came back once, and how long it took.

    Args:
        workers: Opened with the package ``scripts``.
        count: Of jobs.
        seconds: Of each.
        during: Called with how many are done, after each.
    """
    jobs = [Job(str(i), "scripts.many_workers.jobs:wait", {"seconds": seconds}, None, 10.0) for i in range(count)]
    began, keys = time.perf_counter(), []
    for done in workers.run(jobs):
        done.result()
        keys.append(done.key)
        during(len(keys))
    return sorted(keys) == sorted(np.unique(keys)) == sorted(job.key for job in jobs), time.perf_counter() - began
