"""The file ``stages.json``: a model cut into stages, and in what order each process of a pipeline runs them.

A *rank* is one process, on one device. A *stage* is a run of whole modules in program order; the stages are a chain:
each sends activations to the next one and gradients to the one before. An *action* is all that a stage does for one
micro-batch in one direction, and is written as in PyTorch's schedule files: the stage's number, a letter, the
micro-batch's number, both from 0:

==========  ============================================================================================
``0F3``     the forward pass of stage 0 for micro-batch 3
``0B3``     its whole backward pass
``0I3``     of the backward pass only the gradient of the stage's inputs (and what it needs)
``0W3``     of the backward pass only the gradients of the stage's parameters, after ``0I3``
==========  ============================================================================================

The content::

    {
      "format": "device-placement-stages",
      "version": 1,
      "graph": "bert:batch=8",            // the name of the step of one micro-batch
      "cluster": "a100x4",
      "ranks": ["gpu:0", "gpu:1"],        // the device of each rank, by its name in the cluster
      "stages": [                         // in the order of the chain; every rank has one at least
        {"rank": 0, "modules": ["embeddings", "layers.0"]},
        {"rank": 1, "modules": ["layers.1", "head"]}
      ],
      "order": "1f1b",                    // gpipe, 1f1b, interleaved, zb_h1 or list
      "batch": 64,                        // samples a step, a multiple of micro_batches
      "micro_batches": 8,
      "actions": null,                    // where order is list: for each rank its actions, in order
      "step_time_s": 0.123                // as simulated
    }

- ``modules`` are paths as in ``model.named_modules()``, the outermost whole ones, in the order in which the model calls
  them; no module is in two stages or inside another one that is listed. Cutting the model before the first module of
  each stage but the first gives the stages. What the model itself does between two modules (a reshape, a residual sum)
  goes with the module before it; the loss is on the last stage.
- With ``gpipe``, ``1f1b`` and ``zb_h1`` stage ``i`` is on rank ``i``. With ``interleaved`` stage ``i`` is on rank
  ``i % len(ranks)`` and all ranks have equally many. With ``list`` a rank may have any stages.
- ``actions`` hold, for each stage and micro-batch, ``F`` once and either ``B`` once or both ``I`` and ``W`` once, on
  the stage's rank. Sends and receives are not listed: a result is sent when its action ends.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Literal

import msgspec

from envs.pipelines.orders import ORDERS, Action, Order, check_lists, lists_of, parse_action
from envs.pipelines.segments import Segments
from graphs.errors import InputError
from graphs.reading import read_file
from placement.placers.pipeline_stages import PlacedStages
from placement.results.placement_file import STAGES

_MOST_BYTES = 2**26


class Stage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One stage.

    Attributes:
        rank: The process that runs it.
        modules: Its modules in program order.
    """

    rank: int
    modules: tuple[str, ...]


class Stages(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The content of ``stages.json``; the module's text says what each field means."""

    format: Literal["device-placement-stages"] = "device-placement-stages"
    version: Literal[1] = 1
    graph: str
    cluster: str
    ranks: tuple[str, ...]
    stages: tuple[Stage, ...]
    order: Order
    batch: int
    micro_batches: int
    actions: tuple[tuple[str, ...], ...] | None = None
    step_time_s: float | None = None

    def lists(self) -> list[list[Action]] | None:
        """For each rank its actions, where they are listed."""
        return None if self.actions is None else [[parse_action(cell) for cell in row] for row in self.actions]


_DECODER = msgspec.json.Decoder(Stages)


def to_stages(segments: Segments, placed: PlacedStages, *, graph: str, batch: int) -> Stages:
    """What a search found, as the file says it.

    Args:
        segments: What was cut.
        placed: The stages.
        graph: The name of the step of one micro-batch.
        batch: Samples a step.

    Raises:
        InputError: It cannot be said.
    """
    starts, ends = [0, *placed.cuts], [*placed.cuts, segments.num_segments]
    used = list(dict.fromkeys(placed.devices))
    order: Order = next(name for name in ORDERS if name == placed.order)
    stages = Stages(
        graph=graph,
        cluster=segments.cluster.name,
        ranks=tuple(segments.cluster.devices[d].name for d in used),
        stages=tuple(
            Stage(used.index(device), segments.modules_between(a, b))
            for a, b, device in zip(starts, ends, placed.devices, strict=True)
        ),
        order=order,
        batch=batch,
        micro_batches=segments.micro_batches,
        actions=tuple(tuple(map(str, row)) for row in placed.lists) if order == "list" else None,
        step_time_s=placed.step_time_s,
    )
    check_stages(stages)
    return stages


def encode_stages(stages: Stages) -> bytes:
    """The bytes of the file: the same for the same content."""
    return msgspec.json.format(msgspec.json.encode(stages), indent=2) + b"\n"


def read_stages(path: str | os.PathLike[str]) -> Stages:
    """Read and check a file ``stages.json``.

    Args:
        path: The file, or the run directory of a training for ``torch_pipeline``.

    Raises:
        InputError: The file cannot be read or is not valid; the message names file, field and remedy.
    """
    if os.path.isdir(path):
        file = os.path.join(path, STAGES)
        if not os.path.exists(file):
            raise InputError(
                f"'{os.fspath(path)}' holds no {STAGES}; give the run of a training with --target torch_pipeline"
            )
        path = file
    content = read_file(path, "stages file", most_bytes=_MOST_BYTES)
    try:
        stages = _DECODER.decode(content)
        check_stages(stages)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"stages file '{os.fspath(path)}' is not valid: {error}; export it again") from error
    except InputError as error:
        raise InputError(f"stages file '{os.fspath(path)}': {error}") from error
    return stages


def schedule_csv(stages: Stages) -> str:
    """The actions of every rank as PyTorch's schedule files have them: a row a rank, cells such as ``0F1``."""
    lists = stages.lists()
    if lists is None:
        lists = lists_of(stages.order, [stage.rank for stage in stages.stages], stages.micro_batches)
    return "".join(",".join(map(str, row)) + "\n" for row in lists)


def check_stages(stages: Stages) -> None:
    """Raise for the first thing that is not as the module's text says.

    Raises:
        InputError: It names the field.
    """
    count = len(stages.ranks)
    if not count or not stages.stages:
        raise InputError("ranks and stages must each have at least one entry")
    if stages.micro_batches < 1 or stages.batch < 1 or stages.batch % stages.micro_batches:
        raise InputError(
            f"batch is {stages.batch} and micro_batches is {stages.micro_batches}; both must be at least 1 and the "
            "first a multiple of the second"
        )
    rank_of_stage = [stage.rank for stage in stages.stages]
    for number, rank in enumerate(rank_of_stage):
        if not 0 <= rank < count:
            raise InputError(f"stages[{number}].rank is {rank}; there are ranks 0 to {count - 1}")
    idle = sorted(set(range(count)) - set(rank_of_stage))
    if idle:
        raise InputError(f"rank {idle[0]} ('{stages.ranks[idle[0]]}') has no stage; leave it out of ranks")
    _check_order(stages.order, rank_of_stage, count)
    _check_modules(stages.stages)
    if (stages.actions is None) != (stages.order != "list"):
        raise InputError("actions must be given where order is 'list', and null elsewhere")
    lists = stages.lists()
    if lists is not None:
        check_lists(lists, rank_of_stage, stages.micro_batches)


def _check_order(order: str, rank_of_stage: Sequence[int], count: int) -> None:
    if order == "list":
        return
    if order == "interleaved":
        if len(rank_of_stage) % count or any(rank != i % count for i, rank in enumerate(rank_of_stage)):
            raise InputError(
                f"order is 'interleaved', so stage i must be on rank i % {count}, and every rank have equally many; "
                "take order 'list' for other stages"
            )
    elif list(rank_of_stage) != list(range(count)):
        raise InputError(f"order is '{order}', so stage i must be on rank i; take order 'list' for other stages")


def _check_modules(stages: Sequence[Stage]) -> None:
    seen: dict[str, int] = {}
    for number, stage in enumerate(stages):
        if not stage.modules:
            raise InputError(f"stages[{number}].modules is empty; a stage needs one module at least")
        for path in stage.modules:
            if path in seen:
                raise InputError(f"module '{path}' is listed twice, in stages {seen[path]} and {number}; list it once")
            seen[path] = number
    for path, number in seen.items():
        for end in (match.start() for match in re.finditer(r"\.", path)):
            if path[:end] in seen:
                raise InputError(
                    f"stages[{number}].modules has '{path}', which is inside '{path[:end]}'; list one of the two"
                )
