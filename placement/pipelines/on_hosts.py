"""Pipelines measured on the machines of workers: on each a worker has the devices, and starts `torchrun` for its ranks.

The first machine tells a port; then all start at the same time, and meet at that machine's address. Whoever dies or
hangs ends the others: processes of a pipeline notice each other's end, each start has a deadline, and what a worker
has started ends with it.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path

import msgspec

from envs.measured.process import START_LIMIT_S
from graphs.errors import InputError
from graphs.sources import check_can_run, python_source
from placement.arguments import check_at_least_one, check_positive
from placement.exports.stages import Stages, encode_stages, read_stages
from placement.pipelines.timing import ASKED, TIMES, Asked, Said
from placement.runs.measure_jobs import LEASE_LIMIT_S, lease
from placement.workers import Job, Workers, open_workers

DROPPED = 2
"""Steps before those that count: the first ones make buffers and connections."""

_END_LIMIT_S = 20.0
"""Seconds that `torchrun` has to end its processes when it is told to."""

_TORCHRUN = (
    "import sys; from envs.measured.child import end_with_the_parent; end_with_the_parent(int(sys.argv[1])); "
    "from torch.distributed.run import main; main(sys.argv[2:])"
)
"""`torchrun`, that ends with the worker that started it."""


@dataclass(frozen=True)
class PipelineSteps:
    """What the steps of a pipeline took.

    Attributes:
        stages: What was run.
        step_times_s: Seconds of each step, as long as its slowest rank took.
        hosts: The machine of each rank.
        version: Of what proposed the stages, as it was given.
    """

    stages: Stages
    step_times_s: tuple[float, ...]
    hosts: tuple[str, ...]
    version: int = 0

    @property
    def step_time_s(self) -> float:
        """The median."""
        return statistics.median(self.step_times_s)


@dataclass(frozen=True)
class OnHost:
    """What one machine found.

    Attributes:
        host: Its name.
        times_s: Seconds of each step, from the machine of the first rank; None from others, and where it failed.
        said: Why it failed; None where it did not.
        is_lost: Whether it only says that another machine's process has ended.
    """

    host: str
    times_s: tuple[float, ...] | None = None
    said: str | None = None
    is_lost: bool = False


def run_pipeline(
    graph: str,
    stages: str | os.PathLike[str] | Stages,
    *,
    workers: Workers | str | int | None = None,
    steps: int = 10,
    time_limit_s: float = 60.0,
    version: int = 0,
) -> PipelineSteps:
    """Run a pipeline's steps on the machines of workers, as many ranks on each, and measure them.

    Args:
        graph: What to run: a workload of the zoo, or ``python:package.module:function``.
        stages: The run directory of a training for ``torch_pipeline``, its ``stages.json``, or that file's content.
        workers: On whose machines, see `placement.workers.open_workers`; None runs all ranks on this one. Local workers
            stand for a machine each. Where there are more machines than ranks, the first ones are taken.
        steps: Steps that count; `DROPPED` go before them.
        time_limit_s: Seconds that they may take; starting has its own.
        version: Of what proposed the stages; the result has it, too.

    Raises:
        InputError: The ranks cannot be shared out among the machines, or the steps could not be run; one sentence.
    """
    check_at_least_one("steps", steps)
    check_positive("time_limit_s", time_limit_s)
    plan = stages if isinstance(stages, Stages) else read_stages(stages)
    source = python_source(graph)
    check_can_run(source)
    if workers is None or isinstance(workers, str | int):
        with open_workers(1 if workers is None else workers) as opened:
            return _run_on(opened, source, plan, steps, time_limit_s, version)
    return _run_on(workers, source, plan, steps, time_limit_s, version)


def _run_on(
    workers: Workers, source: str, plan: Stages, steps: int, time_limit_s: float, version: int
) -> PipelineSteps:  # fmt: skip
    ranks = len(plan.ranks)
    hosts = workers.hosts()[:ranks]
    if ranks % len(hosts):
        raise InputError(
            f"the pipeline has {ranks} ranks, which {len(hosts)} machines cannot share out evenly; give a number of "
            "workers that divides it"
        )
    where = "placement.pipelines.on_hosts"
    (found,) = workers.run([Job("port", f"{where}:free_port", host=hosts[0], time_limit_s=START_LIMIT_S)])
    limit_s = START_LIMIT_S + time_limit_s
    given = {
        "source": source,
        "stages": encode_stages(plan),
        "steps": steps,
        "limit_s": limit_s,
        "nodes": len(hosts),
        "meet": (hosts[0], found.result()),
        "party": uuid.uuid4().hex,
    }
    jobs = [
        Job(str(node), f"{where}:run_ranks", {**given, "node": node}, None, LEASE_LIMIT_S + limit_s + 60.0, host)
        for node, host in enumerate(hosts)
    ]
    by_node: dict[int, OnHost] = {int(done.key): done.result() for done in workers.run(jobs)}
    failed = [one for one in by_node.values() if one.said is not None]
    if failed:
        first = min(failed, key=lambda one: one.is_lost)
        raise InputError(f"the pipeline could not be run on '{first.host}': {first.said}")
    times_s = by_node[0].times_s
    assert times_s is not None
    each = ranks // len(hosts)
    return PipelineSteps(plan, times_s, tuple(by_node[rank // each].host for rank in range(ranks)), version)


def free_port() -> int:
    """A port of this machine that nobody listens at; what a worker runs first."""
    with socket.socket() as found:
        found.bind(("", 0))
        port: int = found.getsockname()[1]
    return port


def run_ranks(
    *,
    source: str,
    stages: bytes,
    steps: int,
    limit_s: float,
    node: int,
    nodes: int,
    meet: tuple[str, int],
    party: str,
) -> OnHost:
    """Start `torchrun` for this machine's ranks while the pipeline has its devices; what a worker runs.

    Args:
        source: What names the model.
        stages: The bytes of ``stages.json``.
        steps: That count.
        limit_s: Seconds until all is ended.
        node: The number of this machine, of `nodes`.
        nodes: How many there are.
        meet: Address and port where the processes meet.
        party: Names this measurement: its workers may be on one machine.
    """
    plan = msgspec.json.decode(stages, type=Stages)
    each = len(plan.ranks) // nodes
    with lease(LEASE_LIMIT_S, party), tempfile.TemporaryDirectory(prefix="placement-pipeline-") as name:
        folder = Path(name)
        asked = Asked(source, plan, steps, DROPPED, limit_s, [path or os.getcwd() for path in sys.path])
        (folder / ASKED).write_bytes(msgspec.json.encode(asked))
        command = [sys.executable, "-c", _TORCHRUN, str(os.getpid())]
        command += [f"--nnodes={nodes}", f"--node-rank={node}", f"--nproc-per-node={each}"]
        command += [f"--master-addr={meet[0]}", f"--master-port={meet[1]}", f"--rdzv-conf=timeout={int(limit_s)}"]
        command += ["-m", "placement.pipelines.timing", name]
        with (folder / "printed").open("wb") as printed:
            started = subprocess.Popen(
                command,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(asked.import_path)},
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
            )
            try:
                code: int | None = started.wait(limit_s)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                _end(started)
        return _found(folder, code, range(node * each, (node + 1) * each), limit_s)


def _end(started: subprocess.Popen[bytes]) -> None:
    """End `torchrun`, which ends its processes."""
    started.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        started.wait(_END_LIMIT_S)
    started.kill()
    started.wait()


def _found(folder: Path, code: int | None, ranks: range, limit_s: float) -> OnHost:
    """What the processes of this machine left behind."""
    host = platform.node()
    said = [
        (rank, msgspec.json.decode((folder / f"said-{rank}.json").read_bytes(), type=Said))
        for rank in ranks
        if (folder / f"said-{rank}.json").exists()
    ]
    told = next((f"rank {rank}: {one.text}" for rank, one in said if not one.is_lost), None)
    if code == 0:
        times = folder / TIMES
        return OnHost(host, tuple(msgspec.json.decode(times.read_bytes())) if times.exists() else None)
    if told is not None:
        return OnHost(host, said=told)
    text = (folder / "printed").read_text(errors="replace")
    for rank, status in re.findall(r"rank\s*: (\d+) .*\n\s*exitcode\s*: (-?\d+)", text):
        number = -int(status)
        if number > 0 and number != signal.SIGTERM:  # by which torchrun ends those that are left
            return OnHost(host, said=f"rank {rank} was ended by signal {number}; start it again")
        if number < 0 and int(rank) not in dict(said):
            return OnHost(host, said=f"rank {rank} ended with status {status}; see what its model does")
    if code is None:
        return OnHost(host, said=f"it has not ended within {limit_s:g} s; give it more time, or fewer steps")
    if said:
        rank, one = said[0]
        return OnHost(host, said=f"rank {rank}: {one.text}", is_lost=True)
    last = text.strip().rsplit("\n", 1)[-1][:300]
    return OnHost(host, said=f"torchrun ended with status {code}: {last}", is_lost=True)
