"""Whether the content of a checkpoint can be a trainer's, before any of it is used."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from envs.problem import PlacementProblem
from graphs.errors import InputError
from placement.learning.config import LearningConfig, flatten
from placement.learning.learner import LEARNED

_MOST = 2**63 - 1
_MOST_SETTING = 2**20
"""What no setting reaches: a policy of that many units, for example, would not fit any memory."""


def check_content(content: Mapping[str, Any], problem: PlacementProblem) -> None:
    """Raise where a checkpoint's content is not a trainer's of this problem.

    Raises:
        InputError: The message names the entry, without the file's name.
    """
    need(content, "config", dict)
    known: dict[str, Any] = flatten(LearningConfig())
    if set(content["config"]) != set(known):
        raise InputError("its settings are those of another release of this program; start the run again")
    for key, default in known.items():
        value = content["config"][key]
        if value is None and key == "search_survivors":  # all chains go on
            continue
        numbers = isinstance(default, int | float) and not isinstance(default, bool)
        if type(value) is not type(default) and not (isinstance(default, float) and type(value) is int):
            raise _bad(f"config.{key}")
        if numbers and not abs(value) <= _MOST_SETTING:
            raise _bad(f"config.{key}")
    for key in ("seed", "updates", "evaluations"):
        if not 0 <= need(content, key, int) <= _MOST:
            raise _bad(key)
    for key in ("elapsed_s", "best_s", "least_overflow"):
        if math.isnan(need(content, key, int, float)):
            raise _bad(key)
    for value in need(content, "seconds", dict).values():
        if not isinstance(value, int | float):
            raise _bad("seconds")
    _check_learned(content)
    try:
        if not isinstance(json.loads(need(content, "rng", str)), dict):
            raise _bad("rng")
    except (ValueError, RecursionError) as error:
        raise _bad("rng") from error
    _check_tensors(content, "", 0)
    _check_placements(content, problem)
    _check_search(need(content, "search", dict), content["config"]["search_chains"], problem)


def need(content: Mapping[Any, Any], key: str, *kinds: type) -> Any:
    """An entry of one of some types.

    Raises:
        InputError: It is missing or of another type.
    """
    if not isinstance(content, Mapping) or type(content.get(key)) not in kinds:
        raise _bad(key)
    return content[key]


def _check_learned(content: Mapping[str, Any]) -> None:
    """The learner's entries: all of them, or none where no update has needed it yet."""
    if all(content.get(key, ...) is None for key in LEARNED):
        return
    for key, value in need(content, "policy", dict).items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor) or not torch.isfinite(value).all():
            raise _bad("policy")
    _check_optimizer(need(content, "optimizer", dict), list(content["policy"].values()))
    need(content, "generator", torch.Tensor)
    if math.isnan(need(content, "baseline", int, float)):
        raise _bad("baseline")


def _bad(where: str) -> InputError:
    return InputError(f"its entry {where} is not what a trainer of this problem writes; start the run again")


def _check_optimizer(optimizer: Mapping[str, Any], parameters: Sequence[torch.Tensor]) -> None:
    """Adam's moments, one pair for each parameter in the policy's order, and its settings."""
    for number, state in need(optimizer, "state", dict).items():
        if type(number) is not int or not 0 <= number < len(parameters):
            raise _bad("optimizer.state")
        for key, shape in (
            ("step", torch.Size()),
            ("exp_avg", parameters[number].shape),
            ("exp_avg_sq", parameters[number].shape),
        ):
            value = need(state, key, torch.Tensor)
            if value.shape != shape or value.dtype != torch.float32 or not torch.isfinite(value).all():
                raise _bad(f"optimizer.state.{key}")
        if len(state) != 3:
            raise _bad("optimizer.state")
    for group in need(optimizer, "param_groups", list):
        numbers = [need(group, key, int, float) for key in ("lr", "eps", "weight_decay")]
        betas = need(group, "betas", tuple, list)
        if not all(type(beta) is float and 0 <= beta < 1 for beta in betas) or len(betas) != 2:
            raise _bad("optimizer.param_groups.betas")
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            raise _bad("optimizer.param_groups")
        for key, value in group.items():
            if key not in ("lr", "eps", "weight_decay", "betas", "params") and type(value) not in (bool, type(None)):
                raise _bad(f"optimizer.param_groups.{key}")
        positions = need(group, "params", list)
        if not all(type(position) is int for position in positions) or positions != list(range(len(parameters))):
            raise _bad("optimizer.param_groups.params")


def _check_placements(content: Mapping[str, Any], problem: PlacementProblem) -> None:
    widths = (problem.num_groups, problem.graph.num_ops)
    if content.get("best_placement") is not None:
        _check_placement(content["best_placement"], widths, torch.int64, problem, "best_placement")
    times, elite = need(content, "elite_s", list), need(content, "elite", list)
    if len(times) != len(elite) or not all(isinstance(time_s, float) for time_s in times):
        raise _bad("elite_s")
    for placement in elite:
        _check_placement(placement, widths[:1], torch.int64, problem, "elite")


def _check_search(search: Mapping[str, Any], chains: int, problem: PlacementProblem) -> None:
    ops = (problem.graph.num_ops,)
    for key in ("best", "home"):
        if search.get(key) is not None:
            ops_there, *figures = need(search, key, list) or [None]
            if len(figures) != 2 or not all(type(figure) in (int, float) for figure in figures):
                raise _bad(f"search.{key}")
            _check_placement(ops_there, ops, torch.int32, problem, f"search.{key}")
    walking = need(search, "walking", list)
    if not all(type(number) is int and 0 <= number < chains for number in walking):
        raise _bad("search.walking")
    if not 0 <= need(search, "round", int) <= _MOST:
        raise _bad("search.round")
    if len(need(search, "chains", list)) != chains:
        raise _bad("search.chains")
    for chain in search["chains"]:
        for key in ("weights", "kinds", "scalars", "counts", "best_ops"):
            need(chain, key, torch.Tensor)
        _check_placement(chain["best_ops"], ops, torch.int32, problem, "search.chains.best_ops")
        if not need(chain, "rng", str).isdecimal() or int(chain["rng"][:20]) >= 2**64 or len(chain["rng"]) > 20:
            raise _bad("search.chains.rng")
        if chain.get("cycle") is not None:
            _check_placement(chain.get("ops"), ops, torch.int32, problem, "search.chains.ops")


def _check_placement(
    value: Any, widths: Sequence[int], dtype: torch.dtype, problem: PlacementProblem, where: str
) -> None:
    """Device numbers index arrays in compiled code, which does not look where it writes."""
    if not isinstance(value, torch.Tensor) or value.dtype != dtype or value.ndim != 1 or len(value) not in widths:
        raise _bad(where)
    if len(value) and not 0 <= int(value.min()) <= int(value.max()) < problem.num_devices:
        raise _bad(where)


def _check_tensors(value: Any, where: str, depth: int) -> None:
    """Raise for a tensor that says it is larger than what is stored, and for what is nested without need."""
    if depth > 8:
        raise _bad(where)
    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided or not value.is_contiguous() or value.is_meta:
            raise _bad(where)
        return
    inner: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        inner = value.items()
    elif isinstance(value, list | tuple):
        inner = enumerate(value)
    for key, item in inner:
        _check_tensors(item, f"{where}.{key}" if where else str(key), depth + 1)
