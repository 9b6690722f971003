"""A pipeline as one process sees it: its stages, PyTorch's schedule for them, and steps."""

from __future__ import annotations

import datetime
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B
from torch.distributed.pipelining.schedules import _PipelineScheduleRuntime
from torch.utils._pytree import tree_map_only

from graphs.capture.step import own_loss
from graphs.errors import InputError
from placement.exports.stages import Stages, check_stages, read_stages, schedule_csv
from placement.pipelines.batches import Form, check_rows, split_batch
from placement.pipelines.cut import Output, cut
from placement.pipelines.inputs import inputs_of

DEFAULT_TIMEOUT_S = 300.0
"""Seconds that a process waits for another before it gives up."""

_NO_OUTPUTS = {"return_outputs": False} if "return_outputs" in signature(Schedule1F1B.step).parameters else {}
"""Outputs are for the loss alone, where PyTorch can be told so: joining them takes time and memory."""

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
        device: Where this process computes.
        shared: Parameters of this process that other processes have as well, each with their group.
        loss: What the schedule calls.
        form: What the example batch has in common with all others.

    Attributes:
        stages: As above.
        modules: As above: traced, with the parameters of the model.
        rank: As above.
        device: Where this process computes.
    """

    def __init__(
        self,
        stages: Stages,
        modules: dict[int, nn.Module],
        schedule: Any,
        rank: int,
        device: torch.device,
        shared: Sequence[tuple[nn.Parameter, dist.ProcessGroup]],
        loss: _Loss,
        form: Form,
    ) -> None:
        self.stages = stages
        self.modules = modules
        self.rank = rank
        self.device = device
        self._schedule = schedule
        self._shared = shared
        self._loss = loss
        self._form = form
        self._casts = _autocast(device)
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
        """The parameters of this process's stages, each once, for its optimizer."""
        yield from nn.ModuleList(self.modules.values()).parameters()

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
        check_rows(batch, self.stages.batch)
        self._form.check(batch)
        if _autocast(self.device) != self._casts:
            raise InputError(
                "the stages were traced with autocast "
                f"{'off' if self._casts is None else f'to {self._casts}'}, but step is called with it "
                f"{'off' if _autocast(self.device) is None else f'to {_autocast(self.device)}'}; make and step the "
                "pipeline under the same torch.autocast"
            )
        args, kwargs, self._loss.targets = _to(self.device, split_batch(batch))
        losses: list[torch.Tensor] = []
        given: dict[str, Any] = inputs_of(args, kwargs)
        if self.is_last:
            given |= {"target": torch.arange(self.stages.batch), "losses": losses}
        self._steps += 1
        before = [parameter.grad for parameter, _ in self._shared]
        for parameter, _ in self._shared:
            parameter.grad = None
        try:
            self._schedule.step(**given, **_NO_OUTPUTS)
            self._sum_shared(before)
        except (RuntimeError, dist.DistError) as error:
            if not _is_lost(error):
                raise
            raise RankLostError(
                f"rank {self.rank} waited in vain for another rank in step {self._steps}: a process of the pipeline "
                "has ended or hangs; see what that one said, and start all of them again"
            ) from None
        return torch.stack([loss.detach() for loss in losses]).sum() if self.is_last else None

    def _sum_shared(self, before: Sequence[torch.Tensor | None]) -> None:
        """Sum the step's gradients of tied parameters over their processes, and add what there was before."""
        for (parameter, group), earlier in zip(self._shared, before, strict=True):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad, group=group)
            if earlier is not None:
                parameter.grad += earlier


def pipeline(
    model: nn.Module,
    stages: str | os.PathLike[str] | Stages,
    example_batch: Any,
    loss: Callable[..., torch.Tensor] | None = None,
    *,
    device: torch.device | str | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> Pipeline:
    """Cut a model into stages and make PyTorch's schedule for those of this process.

    To be called by each process of ``torchrun --nproc-per-node N script.py``, with the same arguments and a model with
    the same weights. It joins the processes where nothing did yet.

    Args:
        model: Any module that ``torch.export`` traces; it is left as it is. Its mode (training or not) is traced with
            it, and autocast where this is called under it. What it returns must come from its last stage.
        stages: A run's directory, a file ``stages.json``, or its content.
        example_batch: One step's batch, as for `graphs.capture.capture`: the first dimension of every tensor is that of
            the samples.
        loss: Called as ``loss(output, *targets)`` with what the model returns; the mean over samples. Without one the
            model's output must be the loss, or hold it as ``output.loss`` or ``output["loss"]``.
        device: Where this process computes; ``cuda:LOCAL_RANK`` where there is CUDA, else the CPU.
        timeout_s: Seconds to wait for another process before giving up.

    Raises:
        InputError: The stages are for another number of processes or samples, or do not fit the model.
        RankLostError: Another process has ended or does not answer.
    """
    plan = _read(stages)
    args, kwargs, _ = split_batch(example_batch)
    check_rows(example_batch, plan.batch)
    where = torch.device(_default_device() if device is None else device)
    _join(where, timeout_s)
    rank, processes = dist.get_rank(), dist.get_world_size()
    if processes != len(plan.ranks):
        raise InputError(
            f"the stages are for {len(plan.ranks)} processes, but {processes} were started; take torchrun "
            f"--nproc-per-node {len(plan.ranks)}"
        )
    pipe, users, output = cut(model, plan, args, kwargs)
    made = {number: pipe.build_stage(number, where) for number, stage in enumerate(plan.stages) if stage.rank == rank}
    homes = [stage.rank for stage in plan.stages]
    if any(before == after for before, after in itertools.pairwise(homes)):
        for stage in made.values():  # PyTorch would greet every neighbour, and a process cannot greet itself
            stage._get_init_p2p_neighbors_ops = list  # type: ignore[method-assign]
    of_micro_batch = _Loss(loss, output, plan.micro_batches)
    schedule = _schedule(plan, list(made.values()), of_micro_batch)
    modules = {number: stage.submod for number, stage in made.items()}
    shared = _share(modules, {name: {homes[number] for number in numbers} for name, numbers in users.items()}, model)
    return Pipeline(plan, modules, schedule, rank, where, shared, of_micro_batch, Form.of(example_batch))


class _Loss:
    """What a schedule calls with the output of a micro-batch and the numbers of its samples: their part of the loss.

    Args:
        loss: The user's, if any.
        output: How what the model returns is made of what the last stage does.
        micro_batches: ``M``.

    Attributes:
        targets: Of the whole batch.
    """

    def __init__(self, loss: Callable[..., torch.Tensor] | None, output: Output, micro_batches: int) -> None:
        self._loss = own_loss if loss is None else loss
        self._output = output
        self._micro_batches = micro_batches
        self.targets: tuple[Any, ...] = ()

    def __call__(self, output: Any, rows: torch.Tensor) -> torch.Tensor:
        """The loss of one micro-batch, divided by their number."""
        first, last = int(rows[0]), int(rows[-1])
        targets = tree_map_only(torch.Tensor, lambda tensor: tensor[first : last + 1], self.targets)
        return self._loss(self._output.of(output), *targets) / self._micro_batches


def _autocast(device: torch.device) -> torch.dtype | None:
    """What autocast casts to where a device computes; None where it is off."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


def _share(
    modules: Mapping[int, nn.Module], ranks_of: Mapping[str, set[int]], model: nn.Module
) -> list[tuple[nn.Parameter, dist.ProcessGroup]]:
    """The parameters of this process that others have as well, equal from now on, and groups to sum their gradients in.

    Args:
        modules: The stages of this process.
        ranks_of: The processes of each parameter that several stages use, by its name in the model.
        model: The model.
    """
    shared = []
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    own = {names[id(p)]: p for p in nn.ModuleList(modules.values()).parameters() if id(p) in names}
    for name, ranks in ranks_of.items():
        if len(ranks) > 1:
            group = dist.new_group(sorted(ranks))  # each process has to ask for each group
            if dist.get_rank() in ranks:
                assert group is not None
                dist.broadcast(own[name].data, min(ranks), group=group)
                shared.append((own[name], group))
    return shared


def _schedule(plan: Stages, stages: list[Any], loss: Callable[..., torch.Tensor]) -> Any:
    """PyTorch's schedule of an order; where it has none of its own, the one that runs lists."""
    count = plan.micro_batches
    given: dict[str, Any] = {"loss_fn": loss, "scale_grads": False}
    if plan.order == "gpipe":
        return ScheduleGPipe(stages[0], count, **given)
    if plan.order == "1f1b" and count >= len(plan.stages):
        return Schedule1F1B(stages[0], count, **given)
    if plan.order == "interleaved":
        return ScheduleInterleaved1F1B(stages, count, **given)
    schedule = _PipelineScheduleRuntime(stages, count, **given)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "schedule.csv"
        file.write_text(schedule_csv(plan))
        schedule._load_csv(str(file))
    return schedule


def _read(stages: str | os.PathLike[str] | Stages) -> Stages:
    if isinstance(stages, Stages):
        check_stages(stages)
        return stages
    return read_stages(stages)


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
    return tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), values)


def _is_lost(error: BaseException) -> bool:
    """Whether an error, or what caused it, is of the connection to other processes."""
    seen: BaseException | None = error
    while seen is not None:
        said = str(seen).lower()
        if isinstance(seen, dist.DistError) or any(word in said for word in _LOST):
            return True
        seen = seen.__cause__
    return False
