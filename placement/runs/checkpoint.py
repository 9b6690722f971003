"""The trainer's checkpoint: everything that the rest of a run depends on, in one file that is written atomically.

It is read by ``torch.load(weights_only=True)``: tensors, numbers, strings, lists and dicts; nothing is executed. It
carries a digest, and its content is checked before any of it is used (`placement.runs.checkpoint_content`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from envs.problem import PlacementProblem
from graphs.errors import InputError
from graphs.reading import is_missing, read_file
from placement.learning.config import LearningConfig, flatten, unflatten
from placement.learning.state import State
from placement.runs.checkpoint_content import check_content, need
from placement.runs.sealed_archive import unpack, write_archive

FILE_NAME = "checkpoint.pt"
_MOST_BYTES = 2**31

FORMAT, VERSION = "device-placement-checkpoint", 4


def save(run_dir: Path, problem: PlacementProblem, state: State) -> None:
    """Write the checkpoint into `run_dir`; a reader finds the old one or the new one, whole, whenever it looks.

    Raises:
        InputError: It cannot be written, for example because the disk is full; the old one stands.
    """
    content = {
        "format": FORMAT,
        "version": VERSION,
        "digest": "sha256",
        "problem": _identity(problem),
        "config": flatten(state.config),
        "rng": json.dumps(state.rng),  # integers of 128 bits
        "best_placement": None if state.best_placement is None else torch.from_numpy(state.best_placement),
        "elite_s": [time_s for time_s, _ in state.elite],
        "elite": [torch.from_numpy(placement) for _, placement in state.elite],
        "search": _tensors(state.search),
        "seconds": dict(state.seconds),
        "policy": None if state.policy is None else dict(state.policy),
    }
    for key in ("seed", "updates", "evaluations", "elapsed_s", "optimizer", "generator", "baseline"):
        content[key] = getattr(state, key)
    for key in ("best_s", "least_overflow"):
        content[key] = getattr(state, key)
    run_dir.mkdir(parents=True, exist_ok=True)
    write_archive(run_dir / FILE_NAME, content)


def load(run_dir: Path, problem: PlacementProblem) -> State:
    """Read the checkpoint of `run_dir`.

    Raises:
        InputError: It is missing, damaged, of another version, or of another problem; the message says which.
    """
    path = run_dir / FILE_NAME
    try:
        data = read_file(path, "checkpoint", most_bytes=_MOST_BYTES)
    except InputError as error:
        if is_missing(error):
            raise InputError(
                f"{path}: there is no checkpoint to resume from; start a run with this directory as its output"
            ) from error
        raise
    damaged = InputError(f"{path}: it is not a checkpoint, or it is damaged; start the run again")
    content, sealed = unpack(data, damaged)
    if not isinstance(content, dict) or not _is(content.get("format"), FORMAT):
        raise InputError(f"{path}: it is not a checkpoint of a placement run; start the run again")
    if not _is(content.get("version"), VERSION):
        raise InputError(
            f"{path}: its version is {str(content.get('version'))[:40]}, this program reads {VERSION}; "
            "start the run again"
        )
    if "digest" in content and not sealed:
        raise damaged  # those that were written before there was a digest do not say so
    try:
        _check_problem(path, need(content, "problem", dict), _identity(problem))
        check_content(content, problem)
    except InputError as error:
        raise InputError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from error
    try:
        config = unflatten(content["config"], LearningConfig())
    except InputError as error:
        raise InputError(
            f"{path}: its settings are those of another release of this program ({error}); start the run again"
        ) from error
    best = content.get("best_placement")
    return State(
        config=config,
        seed=content["seed"],
        updates=content["updates"],
        evaluations=content["evaluations"],
        elapsed_s=content["elapsed_s"],
        seconds=content["seconds"],
        policy=content["policy"],
        optimizer=content["optimizer"],
        generator=content["generator"],
        rng=json.loads(content["rng"]),
        baseline=content["baseline"],
        best_s=content["best_s"],
        best_placement=None if best is None else best.numpy(),
        least_overflow=content["least_overflow"],
        elite=list(zip(content["elite_s"], [e.numpy() for e in content["elite"]], strict=True)),
        search=_arrays(content["search"]),
    )


def _is(value: Any, wanted: object) -> bool:
    """Whether an entry is a certain one; a tensor's ``==`` gives a tensor."""
    return type(value) is type(wanted) and bool(value == wanted)


def _tensors(value: Any) -> Any:
    """Nested dicts and lists with every array as a tensor."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, Mapping):
        return {key: _tensors(item) for key, item in value.items()}
    return [_tensors(item) for item in value] if isinstance(value, list) else value


def _arrays(value: Any) -> Any:
    """Nested dicts and lists with every tensor as an array."""
    if isinstance(value, torch.Tensor):
        return value.numpy()
    if isinstance(value, Mapping):
        return {key: _arrays(item) for key, item in value.items()}
    return [_arrays(item) for item in value] if isinstance(value, list) else value


def _identity(problem: PlacementProblem) -> dict[str, str]:
    return {
        "graph": problem.graph.sha256,
        "groups": hashlib.sha256(np.ascontiguousarray(problem.groups.group_of_op).tobytes()).hexdigest(),
        "cluster": problem.cluster.sha256,
        "schedule": problem.schedule,
    }


def _check_problem(path: Path, saved: Mapping[str, str], given: Mapping[str, str]) -> None:
    for key, remedy in (
        ("graph", "give the graph that the run was started with"),
        ("groups", "ask for the same number of groups as when the run was started"),
        ("cluster", "give the cluster that the run was started with"),
        ("schedule", f"give the schedule that the run was started with, '{saved.get('schedule')}'"),
    ):
        if not _is(saved.get(key), given[key]):
            raise InputError(f"{path}: the checkpoint is of another {key}; {remedy}")
