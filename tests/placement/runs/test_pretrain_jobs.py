"""A pretraining whose problems workers go through: the same weights, whoever they are and whatever becomes of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from graphs.errors import InputError
from placement.cli.main import main
from placement.learning.threads import one_torch_thread
from placement.pretrained import network
from placement.pretrained.lessons import Asked, RolledOut, roll_out
from placement.pretrained.training import Pretrainer, PretrainStats
from placement.runs.pretraining import pretrain
from placement.workers import Done, Job, Shared, Workers, open_workers
from placement.workers.local import LocalWorkers
from tests.placement.pretrained.small import TINY

CONFIG = replace(TINY, rounds=2)
PROBLEMS, UPDATES = 3, 2


class Noting:
    """Workers whose jobs are written down, and some of whose processes are killed over them.

    Args:
        workers: Who does the jobs.
        kills: How many processes are killed, each while it has a job.
    """

    def __init__(self, workers: LocalWorkers, kills: int = 0) -> None:
        self.count, self.is_here = workers.count, workers.is_here
        self.jobs: list[Job] = []
        self.attempts = self.shared = 0
        self._workers, self._kills = workers, kills

    def load_first(self, function: str, argument: str) -> None:
        self._workers.load_first(function, argument)

    def share(self, content: bytes, decoder: str) -> Shared:
        self.shared += 1
        return self._workers.share(content, decoder)

    def forget(self, shared: Shared) -> None:
        self.shared -= 1
        self._workers.forget(shared)

    def run(self, jobs: Iterable[Job]) -> Iterator[Done]:
        given = list(jobs)
        self.jobs += given
        for done in self._workers.run(given):
            self.attempts += done.attempts
            for process in self._workers._processes:
                if self._kills and process.job is not None and process.pid is not None:
                    os.kill(process.pid, signal.SIGKILL)
                    self._kills -= 1
            yield done

    def close(self) -> None:
        self._workers.close()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of a training without workers."""
    done = pretrain(tmp_path_factory.mktemp("alone") / "run", config=CONFIG, problems=PROBLEMS, updates=UPDATES, seed=4)
    return done.weights.read_bytes()


@pytest.mark.parametrize("spec", ["2", *(pytest.param(spec, marks=pytest.mark.slow) for spec in ("1", "3", "ray:2"))])
def test_the_same_weights_whoever_goes_through_the_problems(alone: bytes, tmp_path: Path, spec: str) -> None:
    seen: list[PretrainStats] = []
    with open_workers(spec) as workers:
        done = pretrain(
            tmp_path / "run",
            config=CONFIG,
            problems=PROBLEMS,
            updates=UPDATES,
            seed=4,
            workers=workers,
            on_update=seen.append,
        )
    assert done.weights.read_bytes() == alone
    assert [(stats.update, stats.family) for stats in seen] == [(1, "3 problems"), (2, "3 problems")]
    assert seen[-1].validation is not None


def test_a_training_goes_on_with_other_workers_and_one_that_is_lost_counts_for_nothing(
    alone: bytes, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with open_workers(2) as workers:
        assert isinstance(workers, LocalWorkers)
        noting: Workers = Noting(workers, kills=2)  # type: ignore[assignment]
        pretrain(out, config=CONFIG, problems=PROBLEMS, updates=1, seed=4, workers=noting)
    assert isinstance(noting, Noting)
    assert noting.attempts > len(noting.jobs) == PROBLEMS
    assert noting.shared == 0  # nothing is kept of weights that are no longer used
    numbers = [job.arguments["asked"].number for job in noting.jobs]
    assert len(set(numbers)) == PROBLEMS
    done = pretrain(out, resume=True, updates=UPDATES)
    assert done.updates == UPDATES
    assert done.weights.read_bytes() == alone
    with pytest.raises(InputError, match="has the number of problems that it began with"):
        pretrain(out, resume=True, updates=9, problems=2)


def test_as_many_problems_as_workers(tmp_path: Path) -> None:
    with open_workers(2) as workers:
        pretrain(tmp_path / "run", config=CONFIG, updates=1, workers=workers)
        text = (tmp_path / "run" / "pretrain.json").read_text()
        assert '"problems": 2' in text
        pretrain(tmp_path / "one", config=CONFIG, updates=1)
        with pytest.raises(InputError, match="learns from one problem at a time, which workers cannot share out"):
            pretrain(tmp_path / "one", resume=True, updates=2, workers=workers)


def test_an_update_goes_by_the_mean_gradient_of_its_problems() -> None:
    """Whatever the problems' order, and a problem that is there twice counts as if it were there once."""
    weights = network.initial(2)
    asked = [Asked(number, CONFIG, 0, imitates=False, entropy_weight=0.01) for number in (5, 8)]
    with one_torch_thread():
        rolled = {one.number: roll_out(weights, one) for one in asked}

        class Given:
            """Gives problems of its own."""

            def __init__(self, *numbers: int) -> None:
                self.numbers = numbers

            def roll_out(self, *_: object) -> list[RolledOut]:
                return [rolled[number] for number in self.numbers]

            def validate(self, *_: object) -> list[float]:
                return [0.0]

        def after(*numbers: int) -> dict[str, np.ndarray]:
            trainer = Pretrainer(replace(CONFIG, problems=len(numbers)), seed=2, rollers=Given(*numbers))
            trainer.update()
            return trainer.policy.weights()

        one, two, again = after(5, 8), after(8, 5), after(5, 5)
        single, other = after(5), after(8)
    assert all(np.array_equal(one[name], two[name]) for name in weights)
    assert all(np.array_equal(again[name], single[name]) for name in weights)
    assert any(not np.array_equal(single[name], other[name]) for name in weights)
    mean = {name: (rolled[5].gradients[name] + rolled[8].gradients[name]) / 2 for name in weights}
    changed = [(one[name] - weights[name]) * -np.sign(mean[name]) for name in weights]
    assert all((each[np.abs(mean[name]) > 1e-6] > 0).all() for name, each in zip(weights, changed, strict=True))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--workers", "none"], "workers 'none' is none of"),
        (["--problems", "0"], "--problems is 0; it must be at least 1"),
        (["--problems", "5000"], "problems is 5000; it must be from 1 to 4096"),
    ],
)
def test_what_cannot_be_asked_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, options: list[str], said: str
) -> None:
    assert main(["pretrain", "--updates", "1", "--out", str(tmp_path / "run"), *options]) == 2
    assert said in capsys.readouterr().err
