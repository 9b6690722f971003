"""What becomes of the work where workers and drivers are killed, hosts hang and networks stall: made here, on purpose.

    python scripts/worker_faults.py --kills 1000 --json faults.json --page docs/results/workers.md

``rows`` and ``training``: workers are killed over a comparison's rows and over a training's chains, a tenth of them
while they answer. ``driver``: the command is killed, and started again. ``host``: all processes of one node of a Ray on
this machine are stopped. ``network``: what goes between the driver and Ray is passed on by a proxy that stalls, for a
while and for good. The last two need the extra `ray`. It ends with 1 where a row or an update was lost or counted
twice. What was seen is in the file of ``--json`` after each part; started again, parts that are there are not done
again.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a clone runs without being installed

import msgspec

from envs.make_problem import make_problem
from graphs.errors import InputError
from graphs.files import write_atomically
from placement.registry import PLACERS
from placement.workers import Workers, open_workers
from scripts.many_workers.faults import (
    Proxy,
    Seen,
    doubles,
    kill_drivers,
    kill_in_comparison,
    kill_in_training,
    ray_cluster,
    signal_node,
)
from scripts.many_workers.page import fill, table, where

GRAPH, CLUSTER = "rnnlm:layers=2,steps=8", "k80x4"


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="%(default)s")
    parser.add_argument("--kills", type=int, default=1000, help="of workers, in all: %(default)s")
    parser.add_argument("--workers", default="2", help="that are killed: %(default)s")
    parser.add_argument("--driver-kills", type=int, default=5, help="for each of both commands: %(default)s")
    parser.add_argument("--driver-updates", type=int, default=150, help="of the training: %(default)s")
    parser.add_argument("--json", type=Path, help="keep what was seen there, and do not do it again")
    parser.add_argument("--page", type=Path, help="fill the table between this page's markers")
    asked = parser.parse_args(args)
    names = asked.parts.split(",")
    try:
        for name in names:
            if name not in PARTS:
                raise InputError(f"--parts has '{name}'; it must be one of {', '.join(PARTS)}")
        found = _read(asked.json)
        for name in names:
            if name not in found:
                with tempfile.TemporaryDirectory() as folder:
                    seen = list(PARTS[name](asked, Path(folder)))
                found[name] = _Part(where(), seen)
                if asked.json is not None:
                    write_atomically(asked.json, msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
            for one in found[name].seen:
                said = f"{one.what}: {one.faults}; {one.outcome}; {one.seconds}"
                print(f"{'ok ' if one.ok else 'BAD'} {said}", flush=True)
            if asked.page is not None:
                fill(asked.page, "worker_faults.py", _text([found[each] for each in PARTS if each in found]))
    except InputError as error:
        print(f"worker_faults: {error}", file=sys.stderr)
        return 2
    return 0 if all(one.ok for name in names for one in found[name].seen) else 1


class _Part(msgspec.Struct, frozen=True):
    """What was seen in a part, and what it was made on."""

    where: str
    seen: list[Seen]


def _read(path: Path | None) -> dict[str, _Part]:
    """The parts that a file holds; none where there is no file."""
    if path is None or not path.exists():
        return {}
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, _Part])
    except (msgspec.DecodeError, OSError) as error:
        raise InputError(f"file '{path}' holds nothing that was seen ({error}); give another --json") from error


def _text(parts: Sequence[_Part]) -> str:
    """A table of all parts."""
    head = ["what was done", "how often", "what became of it", "time", "made on"]
    rows = [[one.what, one.faults, one.outcome, one.seconds, part.where] for part in parts for one in part.seen]
    return table(head, rows)


def _kills_in_rows(asked: argparse.Namespace) -> int:
    """Of all kills those over rows: a little less than chance gives where each dies up to 15 times."""
    return int(min(asked.kills // 2, 4 * len(PLACERS)))


def _rows(asked: argparse.Namespace, folder: Path) -> Iterator[Seen]:
    problem = make_problem(GRAPH, CLUSTER, groups=48)
    with open_workers(asked.workers, packages=("scripts",)) as workers:
        yield kill_in_comparison(problem, workers, folder, kills=_kills_in_rows(asked), evaluations=300)


def _training(asked: argparse.Namespace, folder: Path) -> Iterator[Seen]:
    problem = make_problem(GRAPH, CLUSTER, groups=48)
    left = asked.kills - _kills_in_rows(asked)
    updates = max(left // 5, 4)  # an update has two to four chains, each of which dies about four times
    with open_workers(asked.workers, packages=("scripts",)) as workers:
        yield kill_in_training(problem, workers, folder, kills=left, updates=updates)


def _drivers(asked: argparse.Namespace, folder: Path) -> list[Seen]:
    return kill_drivers(folder, kills=asked.driver_kills, updates=asked.driver_updates)


def _host(asked: argparse.Namespace, folder: Path) -> list[Seen]:
    """Stop all processes of a node while it works."""
    import ray

    with ray_cluster(2) as (port, _, nodes):
        ray.init(address=f"127.0.0.1:{port}", log_to_driver=False, logging_level=logging.ERROR)
        try:
            until = time.monotonic() + 120.0
            while sum(node["Alive"] for node in ray.nodes()) < 2 and time.monotonic() < until:
                time.sleep(0.5)
            with open_workers("ray:auto", packages=("scripts",)) as workers:
                count = workers.count
                ok, took_s = doubles(
                    workers, 200, 0.2, lambda done: signal_node(nodes[1], signal.SIGSTOP) if done == 20 else None
                )
        finally:
            ray.shutdown()
    said = "200 jobs of 0.2 s, " + ("each once" if ok else "NOT each once")
    return [Seen(f"one of two hosts hangs (Ray, {count} workers)", "once", said, f"{took_s:.0f} s", ok)]


def _network(asked: argparse.Namespace, folder: Path) -> list[Seen]:
    """Let the network stall for ten seconds, and then for good."""
    found = []
    with ray_cluster(1) as (_, client_port, _nodes):
        proxy = Proxy(client_port)

        def stall_for(seconds: float) -> None:
            proxy.stall()
            time.sleep(seconds)
            proxy.go_on()

        with _join(proxy.port) as workers:
            ok, took_s = doubles(workers, 60, 0.2, lambda done: stall_for(10.0) if done == 10 else None)
        said = "60 jobs of 0.2 s, " + ("each once" if ok else "NOT each once")
        found.append(Seen("the network stalls for 10 s (Ray's client)", "once", said, f"{took_s:.0f} s", ok))
        began = time.perf_counter()
        said, ok = "it went on, which it cannot", False
        try:
            with _join(proxy.port) as workers:
                doubles(workers, 60, 0.2, lambda done: proxy.stall() if done == 10 else None)
        except InputError as error:
            said, ok = f"it ends: {error}", True
        took_s = time.perf_counter() - began
        found.append(Seen("the network stalls for good (Ray's client)", "once", said, f"{took_s:.0f} s", ok))
    return found


def _join(port: int) -> Workers:
    """Workers of a Ray that has just been started: on a busy machine its first server is given up before it answers."""
    spec, packages = f"ray://127.0.0.1:{port}", ("scripts",)
    for _ in range(3):
        with contextlib.suppress(InputError):
            return open_workers(spec, packages=packages)
    return open_workers(spec, packages=packages)


PARTS: dict[str, Callable[[argparse.Namespace, Path], Iterable[Seen]]] = {
    "rows": _rows,
    "training": _training,
    "driver": _drivers,
    "host": _host,
    "network": _network,
}


if __name__ == "__main__":
    sys.exit(main())
