"""A training of the pretrained policy from its settings to the files in its directory.

| file | what |
|---|---|
| `weights.safetensors` | the best weights so far, by problems kept from the training |
| `pretrain.json` | seed, settings, PyTorch's version |
| `checkpoint.pt` | all that the rest of the training depends on |
| `events.out.tfevents.*` | curves for TensorBoard |

It prints nothing: a function is told of each update.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch.utils.tensorboard import SummaryWriter

from graphs.errors import InputError
from graphs.files import write_atomically
from graphs.reading import exists, read_file
from placement.learning.threads import deferred_interrupt, one_torch_thread
from placement.pretrained import network
from placement.pretrained.config import PretrainConfig
from placement.pretrained.lessons import InProcess
from placement.pretrained.training import Pretrainer, PretrainStats
from placement.results.comparison import check_seed
from placement.runs import directory
from placement.runs.pretrain_jobs import WorkersRollOut
from placement.runs.record import input_errors
from placement.runs.sealed_archive import unpack, write_archive
from placement.runs.stopping import stop_on_sigterm
from placement.runs.telemetry import wait_for_a_later_name
from placement.workers import Workers

SETTINGS, WEIGHTS, CHECKPOINT = "pretrain.json", "weights.safetensors", "checkpoint.pt"
DEFAULT_PRETRAIN_S = 1800.0
"""Seconds of training where neither a time limit nor a number of updates is given."""

_FORMAT, _VERSION = "device-placement-pretraining", 1
_MOST_BYTES = 2**27
_SAVE_EVERY_S = 60.0


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The content of `pretrain.json`.

    Attributes:
        seed: Of the weights, problems and samples.
        config: How the policy is trained.
        torch: Of PyTorch: another one may round otherwise.
    """

    seed: int
    config: PretrainConfig
    torch: str


@dataclass(frozen=True, eq=False)
class Pretrained:
    """What a training came to.

    Attributes:
        run_dir: Where its files are.
        updates: Updates in all.
        seconds: Seconds of this call.
        validation: Of the best weights: the mean log of the best heuristic's step time over the policy's, on problems
            kept from the training; None where they were not looked at.
        interrupted: True where a signal ended it before its limit.
    """

    run_dir: Path
    updates: int
    seconds: float
    validation: float | None
    interrupted: bool

    @property
    def weights(self) -> Path:
        """The file of the best weights."""
        return self.run_dir / WEIGHTS


def pretrain(
    run_dir: Path,
    *,
    seed: int = 0,
    updates: int | None = None,
    time_limit_s: float | None = None,
    resume: bool = False,
    config: PretrainConfig | None = None,
    problems: int | None = None,
    workers: Workers | None = None,
    on_update: Callable[[PretrainStats], None] | None = None,
) -> Pretrained:
    """Train the policy on problems from seeds, and leave the best weights in a directory.

    Ctrl-C ends it after the update under way; the best weights so far are kept, and it can be resumed.

    Args:
        run_dir: The directory, which holds no run yet, or the training to resume.
        seed: Of the weights, problems and samples.
        updates: Updates in all, those before included.
        time_limit_s: Seconds of this call; `DEFAULT_PRETRAIN_S` where `updates` is None, too.
        resume: Go on with the training in the directory, whose seed and settings hold.
        config: How to train.
        problems: Problems of an update, whose mean gradient makes one step; None takes one for each worker, and
            without workers what `config` says.
        workers: Go through the rounds on the problems; None does so here. The weights do not depend on who does.
        on_update: Told of each update.

    Raises:
        InputError: Bad input, or a file cannot be written; the message says what.
    """
    check_seed(seed)
    if time_limit_s is None and updates is None:
        time_limit_s = DEFAULT_PRETRAIN_S
    if not resume:
        directory.check_free(run_dir)
        if exists(run_dir / SETTINGS):
            raise InputError(
                f"'{run_dir}' holds a training already; continue it with --resume {run_dir}, or give another --out"
            )
    elif not exists(run_dir / SETTINGS):
        raise InputError(f"'{run_dir}' holds no training to resume; start one with --out {run_dir}")
    rollers = InProcess() if workers is None else WorkersRollOut(workers)
    with directory.hold(run_dir):
        for leftover in (*run_dir.glob(f".{SETTINGS}.*.tmp"), *run_dir.glob(f".{WEIGHTS}.*.tmp")):
            leftover.unlink(missing_ok=True)
        if resume:
            settings = _read_settings(run_dir)
            _check_resumed(settings.config, problems, workers)
            trainer = Pretrainer(settings.config, seed=settings.seed, rollers=rollers)
            trainer.restore(_load(run_dir, trainer))
        else:
            config = config or PretrainConfig()
            if problems is None and workers is not None and config.problems is None:
                problems = workers.count
            config = config if problems is None else replace(config, problems=problems)
            trainer = Pretrainer(config, seed=seed, rollers=rollers)
            settings = Settings(seed=seed, config=trainer.config, torch=str(torch.__version__))
            write_atomically(run_dir / SETTINGS, msgspec.json.format(msgspec.json.encode(settings), indent=2) + b"\n")
            _save(run_dir, trainer)
        return _train(run_dir, trainer, updates, time_limit_s, on_update)


def _check_resumed(config: PretrainConfig, problems: int | None, workers: Workers | None) -> None:
    """Raise where a training that is resumed is asked for what it did not begin with."""
    if problems is not None and problems != config.problems:
        raise InputError("a training that is resumed has the number of problems that it began with; leave out problems")
    if workers is not None and config.problems is None:
        raise InputError(
            "this training learns from one problem at a time, which workers cannot share out; leave out workers, or "
            "start another training with them"
        )


def _train(
    run_dir: Path,
    trainer: Pretrainer,
    updates: int | None,
    time_limit_s: float | None,
    on_update: Callable[[PretrainStats], None] | None,
) -> Pretrained:
    began_s = saved_s = time.perf_counter()
    first, interrupted = trainer.updates, True

    def is_over() -> bool:
        if updates is not None and trainer.updates >= updates:
            return True
        return time_limit_s is not None and time.perf_counter() - began_s >= time_limit_s

    wait_for_a_later_name(run_dir)
    with input_errors(run_dir, "pretrain"), closing(SummaryWriter(str(run_dir), purge_step=first + 1)) as writer:
        try:
            with one_torch_thread(), deferred_interrupt() as interrupt, stop_on_sigterm() as stop:
                while not (is_over() or interrupt.is_set() or stop.is_set()):
                    stats = trainer.update()
                    _write(writer, stats, (trainer.updates - first) / max(time.perf_counter() - began_s, 1e-9))
                    if on_update is not None:
                        on_update(stats)
                    if stats.validation is not None or time.perf_counter() - saved_s > _SAVE_EVERY_S:
                        _save(run_dir, trainer)
                        saved_s = time.perf_counter()
                interrupted = interrupt.is_set() or stop.is_set()
                _save(run_dir, trainer)
        except KeyboardInterrupt:  # a second Ctrl-C does not wait for the update: what was saved last stands
            pass
    seconds = time.perf_counter() - began_s
    best = trainer.best_validation
    return Pretrained(run_dir, trainer.updates, seconds, best if math.isfinite(best) else None, interrupted)


def _write(writer: SummaryWriter, stats: PretrainStats, updates_per_s: float) -> None:
    """The curves of an update; docs/reference/tensorboard.md says what they show."""
    for tag, value in (
        ("pretrain/gain", stats.gain),
        ("pretrain/mean_gain", stats.mean_gain),
        ("pretrain/validation_gain", stats.validation),
        ("policy/loss", stats.loss),
        ("policy/entropy", stats.entropy),
        ("policy/grad_norm", stats.grad_norm),
        ("time/updates_per_s", updates_per_s),
    ):
        if value is not None:
            writer.add_scalar(tag, value, stats.update)


def _save(run_dir: Path, trainer: Pretrainer) -> None:
    """Write the best weights and the checkpoint, each whole."""
    found = math.isfinite(trainer.best_validation)
    best = trainer.best if found else trainer.policy.weights()
    about = {"seed": str(trainer.seed), "updates": str(trainer.best_updates if found else trainer.updates)}
    network.save(run_dir / WEIGHTS, best, about)
    content = {"format": _FORMAT, "version": _VERSION, "seed": trainer.seed, **trainer.state()}
    write_archive(run_dir / CHECKPOINT, content)


def _load(run_dir: Path, trainer: Pretrainer) -> dict[str, Any]:
    """The content of a checkpoint.

    Raises:
        InputError: It is missing, damaged, or another training's.
    """
    path = run_dir / CHECKPOINT
    data = read_file(path, "checkpoint", most_bytes=_MOST_BYTES)
    damaged = InputError(f"{path}: it is not a checkpoint of a pretraining, or it is damaged; start the training again")
    content, sealed = unpack(data, damaged)
    if not sealed or not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise damaged
    if content.get("version") != _VERSION or content.get("seed") != trainer.seed:
        raise InputError(f"{path}: it is of another release or another seed; start the training again")
    return content


def _read_settings(run_dir: Path) -> Settings:
    path = run_dir / SETTINGS
    try:
        return msgspec.json.decode(read_file(path, "settings", most_bytes=2**20), type=Settings)
    except msgspec.DecodeError as error:
        raise InputError(f"{path}: it is damaged ({error}); start the training again") from error
