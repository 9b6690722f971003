"""The verb ``pretrain``: trains the policy that ``place`` asks."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

from graphs.errors import InputError
from placement import api
from placement.arguments import check_positive
from placement.cli import verbs
from placement.cli.shared import make_console, status
from placement.runs import directory
from placement.workers import parse_workers

if TYPE_CHECKING:
    from placement.pretrained.training import PretrainStats

_SHOW_EVERY_S = 10.0


def pretrain(verb: verbs.Pretrain) -> int:
    """Train, show how it goes on, and say where the weights are.

    Raises:
        InputError: Bad input; one sentence.
    """
    check_positive("--time-limit-s", verb.time_limit_s)
    if verb.updates is not None and verb.updates < 1:
        raise InputError(f"--updates is {verb.updates}; it must be at least 1")
    if verb.problems is not None and verb.problems < 1:
        raise InputError(f"--problems is {verb.problems}; it must be at least 1")
    if verb.workers is not None:
        parse_workers(verb.workers)
    if verb.resume is not None and (verb.out is not None or verb.seed != 0):
        raise InputError("a training that is resumed has its directory and seed; leave out --out and --seed")
    run_dir = verb.resume or verb.out or directory.free_directory(Path("runs"), "pretrain")
    out, err = make_console(), make_console(stderr=True)
    shown_s = time.perf_counter()

    def on_update(stats: PretrainStats) -> None:
        nonlocal shown_s
        if stats.validation is None and time.perf_counter() - shown_s < _SHOW_EVERY_S:
            return
        shown_s = time.perf_counter()
        said = f"update {stats.update:,}: {_percent(stats.gain)} on {stats.family}"
        if stats.validation is not None:
            said += f"; {_percent(stats.validation)} on problems kept from it"
        err.print(said, style="dim", soft_wrap=True)

    with status(err, f"training in {run_dir}"):
        done = api.pretrain(
            run_dir,
            time_limit_s=verb.time_limit_s,
            updates=verb.updates,
            seed=verb.seed,
            resume=verb.resume is not None,
            problems=verb.problems,
            workers=verb.workers,
            on_update=on_update,
        )
    if done.interrupted:
        out.print("Stopped before the limit; the best weights so far are kept.", style="yellow")
    if done.validation is not None:
        out.print(f"policy      {_percent(done.validation)}, on problems kept from the training")
    out.print(f"weights     {done.weights}", soft_wrap=True)
    out.print(f"use         placement place GRAPH --cluster CLUSTER --weights {done.weights}", soft_wrap=True)
    out.print(f"go on       placement pretrain --resume {done.run_dir} --time-limit-s 600", soft_wrap=True)
    out.print(f"watch       tensorboard --logdir {done.run_dir}", soft_wrap=True)
    return 0


def _percent(gain: float) -> str:
    """A gain, the log of a ratio of times, in words."""
    share = abs(1.0 - math.exp(-gain))
    return f"steps {share:.1%} {'shorter' if gain >= 0 else 'longer'} than the best heuristic's"
