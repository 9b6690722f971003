"""A pipeline as one process sees it: its stages, PyTorch's schedule for them, and steps."""

from __future__ import annotations

import datetime
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B
from torch.distributed.pipelining.schedules import _PipelineScheduleRuntime

from envs.pipelines.orders import lists_of
from graphs.errors import InputError
from placement.exports.stages import Stages, check_stages, read_stages
from placement.pipelines.cut import check_rows, cut, split_batch

DEFAULT_TIMEOUT_S = 300.0
"""Seconds that a process waits for another before it gives up."""

_LOST = ("connection", "timed out", "timeout", "gloo", "nccl", "socket", "broken pipe")


class RankLostError(RuntimeError):
    """Another process of the pipeline has ended, or does not answer."""


class Pipeline:
    """What one process runs of a pipeline; `placement.pipeline` makes it.

    Args:
        stages: What is run.
        modules: The stages of this process by number.
        schedule: PyTorch's.
        rank: The number of this process.

    Attributes:
        stages: As above.
        modules: As above: traced, with the parameters of the model.
        rank: As above.
        device: Where this process computes.
    """

    def __init__(
        self, stages: Stages, modules: dict[int, nn.Module], schedule: Any, rank: int, device: torch.device
    ) -> None:
        self.stages = stages
        self.modules = modules
        self.rank = rank
        self.device = device
        self._schedule = schedule
        self._steps = 0

    @property
    def is_first(self) -> bool:
        """Whether this process reads the inputs."""
        return 0 in self.modules

    @property
    def is_last(self) -> bool:
        """Whether this process has the loss."""
        return len(self.stages.stages) - 1 in self.modules

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of this process's stages, for its optimizer."""
        for module in self.modules.values():
            yield from module.parameters()

    def step(self, batch: Any) -> torch.Tensor | None:
        """Forward and backward passes of all micro-batches; gradients are added to ``.grad``, as by one backward pass.

        Args:
            batch: As the example batch, with as many samples. Every process is given it; only the first stage reads the
                inputs and only the last one the target.

        Returns:
            The mean loss, a tensor without dimensions, where the last stage is; None elsewhere.

        Raises:
            InputError: The batch has another size or form.
            RankLostError: Another process has ended or does not answer.
        """
        args, kwargs, targets = split_batch(batch)
        check_rows((args, kwargs, targets), self.stages.batch)
        args, kwargs, targets = _to(self.device, (args, kwargs, targets))
        losses: list[torch.Tensor] = []
        given: dict[str, Any] = {}
        if self.is_last:
            rows = torch.zeros(self.stages.batch, device=self.device)
            given = {"target": targets[0] if targets else rows, "losses": losses}
        self._steps += 1
        try:
            if self.is_first:
                self._schedule.step(*args, **kwargs, **given)
            else:
                self._schedule.step(**given)
        except (RuntimeError, dist.DistError) as error:
            if not _is_lost(error):
                raise
            raise RankLostError(
                f"rank {self.rank} waited in vain for another rank in step {self._steps}: a process of the pipeline "
                "has ended or hangs; see what that one said, and start all of them again"
            ) from None
        return torch.stack([loss.detach() for loss in losses]).mean() if self.is_last else None


def pipeline(
    model: nn.Module,
    stages: str | os.PathLike[str] | Stages,
    example_batch: Any,
    loss: Callable[..., torch.Tensor],
    *,
    device: torch.device | str | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> Pipeline:
    """Cut a model into stages and make PyTorch's schedule for those of this process.

    To be called by each process of ``torchrun --nproc-per-node N script.py``, with the same arguments and a model with
    the same weights. It joins the processes where nothing did yet.

    Args:
        model: Any module that ``torch.export`` traces and that returns a tensor; it is left as it is. Its mode
            (training or not) is traced with it.
        stages: A run's directory, a file ``stages.json``, or its content.
        example_batch: One step's batch, as for `graphs.capture.capture`: the first dimension of every tensor is that of
            the samples.
        loss: Called as ``loss(output, target)``, or ``loss(output)`` without a target; the mean over samples.
        device: Where this process computes; ``cuda:LOCAL_RANK`` where there is CUDA, else the CPU.
        timeout_s: Seconds to wait for another process before giving up.

    Raises:
        InputError: The stages are for another number of processes or samples, or do not fit the model.
        RankLostError: Another process has ended or does not answer.
    """
    plan = _read(stages)
    args, kwargs, targets = split_batch(example_batch)
    check_rows((args, kwargs, targets), plan.batch)
    where = torch.device(_default_device() if device is None else device)
    _join(where, timeout_s)
    rank, processes = dist.get_rank(), dist.get_world_size()
    if processes != len(plan.ranks):
        raise InputError(
            f"the stages are for {len(plan.ranks)} processes, but {processes} were started; take torchrun "
            f"--nproc-per-node {len(plan.ranks)}"
        )
    pipe = cut(model, plan, args, kwargs)
    made = {number: pipe.build_stage(number, where) for number, stage in enumerate(plan.stages) if stage.rank == rank}
    homes = [stage.rank for stage in plan.stages]
    if any(before == after for before, after in itertools.pairwise(homes)):
        for stage in made.values():  # PyTorch would greet every neighbour, and a process cannot greet itself
            stage._get_init_p2p_neighbors_ops = list
    has_target = bool(targets)

    def of_micro_batch(output: Any, target: torch.Tensor) -> torch.Tensor:
        return loss(output, target) if has_target else loss(output)

    schedule = _schedule(plan, list(made.values()), of_micro_batch)
    return Pipeline(plan, {number: stage.submod for number, stage in made.items()}, schedule, rank, where)


def _schedule(plan: Stages, stages: list[Any], loss: Callable[..., torch.Tensor]) -> Any:
    """PyTorch's schedule of an order; where it has none of its own, the one that runs lists."""
    if plan.order == "gpipe":
        return ScheduleGPipe(stages[0], plan.micro_batches, loss_fn=loss)
    if plan.order == "1f1b":
        return Schedule1F1B(stages[0], plan.micro_batches, loss_fn=loss)
    if plan.order == "interleaved":
        return ScheduleInterleaved1F1B(stages, plan.micro_batches, loss_fn=loss)
    schedule = _PipelineScheduleRuntime(stages, plan.micro_batches, loss_fn=loss)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "schedule.csv"
        file.write_text(schedule_csv(plan))
        schedule._load_csv(str(file))
    return schedule


def schedule_csv(plan: Stages) -> str:
    """The actions of every rank as PyTorch's schedule files have them: a row a rank, cells such as ``0F1``."""
    lists = plan.lists()
    if lists is None:
        lists = lists_of(plan.order, [stage.rank for stage in plan.stages], plan.micro_batches)
    return "".join(",".join(map(str, row)) + "\n" for row in lists)


def _read(stages: str | os.PathLike[str] | Stages) -> Stages:
    if isinstance(stages, Stages):
        check_stages(stages)
        return stages
    path = Path(stages)
    return read_stages(path / "stages.json" if path.is_dir() else path)


def _default_device() -> str:
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def _join(device: torch.device, timeout_s: float) -> None:
    """Join the processes, where nothing did yet."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if dist.is_initialized():
        return
    if "RANK" not in os.environ:
        raise InputError("no other process is known; start the script by torchrun --nproc-per-node N")
    limit = datetime.timedelta(seconds=timeout_s)
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=limit)
    except (RuntimeError, dist.DistError) as error:
        raise RankLostError(
            f"rank {os.environ['RANK']} met no other within {timeout_s:g} s: {str(error).splitlines()[0]}; start all "
            "processes again"
        ) from None


def _to(device: torch.device, values: Any) -> Any:
    return torch.utils._pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), values)


def _is_lost(error: BaseException) -> bool:
    """Whether an error, or what caused it, is of the connection to other processes."""
    seen: BaseException | None = error
    while seen is not None:
        said = str(seen).lower()
        if isinstance(seen, dist.DistError) or any(word in said for word in _LOST):
            return True
        seen = seen.__cause__
    return False
