"""The user's half: run a model of one's own by a placement, with its own weights. Importing it loads torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from envs.measured.engine import Engine, Step
from envs.measured.machine import RealDevice, parse_devices
from envs.measured.optimizers import HeldOptimizer, make_optimizer, optimizer_name, state_keys
from envs.measured.problem import machine_cluster
from envs.measured.updates import UpdateSettings
from graphs.capture import batch_tensors, capture_program
from graphs.capture.own_step import OwnStep
from graphs.capture.program import Program
from graphs.capture.state import named_state
from graphs.capture.step import Loss
from graphs.errors import InputError
from placement.results.placement_file import PlacementResult, check_placement, read_placement
from placement.runs.plain import compiles_regions
from placement.unchanged import Unchanged


class PlacedStep:
    """A model's step that runs by a placement; called with a batch as the step was captured with.

    To be closed, or used in a ``with`` statement: its devices are threads, and while they live PyTorch computes with as
    many threads of its own as a device has cores.

    Args:
        engine: With the placement that is to run.
        optimizers: Of a step that trains.
        unchanged: Looks at the model before each step; None where nobody else has it.

    Attributes:
        engine: What runs the step.
        last: The last step that was run: how long it took, and the peak memory of each device.
        optimizer: What says learning rates and keeps states; None where the step does not train, or has several.
            Schedulers of `torch.optim.lr_scheduler` work on it, and its ``state_dict`` is as if it had made the steps
            itself.
        optimizers: All of them.
    """

    def __init__(
        self,
        engine: Engine,
        optimizers: tuple[torch.optim.Optimizer, ...] = (),
        unchanged: Unchanged | None = None,
    ) -> None:
        self.engine = engine
        self._unchanged = unchanged
        self.optimizers = optimizers
        self.optimizer = optimizers[0] if len(optimizers) == 1 else None
        self.last: Step | None = None

    def __call__(self, batch: Any) -> Any:
        """Run one step on a batch of the sizes of the example batch.

        Returns:
            In training the loss, and the model's parameters and buffers have been updated; of a step of one's own what
            that returns; else what the model returns.

        Raises:
            InputError: The batch is not as the example batch, or the model is not what it was: a parameter was
                replaced, frozen or moved, a module has another mode.
            envs.measured.engine.StepError: An op failed, or the step is closed.
        """
        if self._unchanged is not None:
            self._unchanged.check()
        program = self.engine.program
        self.last = self.engine.step(batch_tensors(batch, program.training, program.batch))
        return self.last.output if program.loss is None else self.last.loss

    def write_back(self) -> None:
        """Let the model have what was computed where it is not: weights on GPUs. Closing does this, too."""
        self.engine.write_back()

    def close(self) -> None:
        """End the devices' threads."""
        self.engine.write_back()
        self.engine.close()

    def __enter__(self) -> PlacedStep:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def apply(
    model: nn.Module,
    result: PlacementResult | str | Path,
    example_batch: Any,
    loss: Loss | None = None,
    *,
    devices: str | tuple[RealDevice, ...] | None = None,
    training: bool = True,
    optimizer: str | torch.optim.Optimizer | Sequence[torch.optim.Optimizer] = "adam",
    clip_grad_norm: float | None = None,
    step: OwnStep | None = None,
    settings: UpdateSettings | None = None,
    name: str | None = None,
    seed: int = 0,
    compile_regions: bool | None = None,
) -> PlacedStep:
    """Make a function that runs a model's step by a placement.

    The weights are the model's own: on CPU devices a training step updates them where they are. Every number is what
    the model itself would compute, save the random numbers of dropout, which have a seed of their own for each op.

    Args:
        model: The model that was placed.
        result: Its placement, or the file of it.
        example_batch: As in `graphs.capture.capture`; the sizes are those of every batch.
        loss: From the model's output to the loss, as in `graphs.capture.capture`.
        devices: The real device for each device of the placement, in its order: ``"cpu:0,cuda:0"``. By default those
            that the placement names.
        training: As when the model was captured to be placed.
        optimizer: What updates the weights, as when the model was captured: a name, or an optimizer of `torch.optim`
            for all of the model's parameters (SGD, RMSprop, Adam or AdamW). The step then makes the updates, in place
            of ``optimizer.step()``: it goes on from the optimizer's state and keeps it there, and reads the settings
            of its groups before each step. A step of one's own may have several: an update by a name is made by the
            first one of this kind that has the parameter.
        clip_grad_norm: As when the model was captured.
        step: Likewise, instead of a loss; what it returns is what the placed step returns.
        settings: Learning rate and so on where `optimizer` is a name.
        name: The graph's name, of no effect here.
        seed: Of the step's random numbers.
        compile_regions: Let PyTorch's compiler compile what each device runs between two transfers, after the first
            step, which may take minutes: results are then close, not the same to the last bit. By default where the
            placement's own step time was measured so.

    Raises:
        InputError: The placement is one of another graph, a device does not exist, there is no C++ compiler, or the
            optimizer has a setting that updates have not, or lacks a parameter.

    Example:
        >>> import placement, torch
        >>> from graphs.capture import capture
        >>> model, batch = torch.nn.Linear(4, 2), torch.ones(3, 4)
        >>> graph = capture(model, batch, torch.sum, optimizer="sgd")
        >>> problem = placement.make_problem(graph, "cpu_cores:1")
        >>> result = placement.make_result(problem, [0] * problem.num_groups, placer="by hand", seed=0)
        >>> with placement.apply(model, result, batch, torch.sum, optimizer="sgd") as step:
        ...     losses = [float(step(batch)) for _ in range(3)]
        >>> losses[0] > losses[1] > losses[2]
        True
    """
    found = result if isinstance(result, PlacementResult) else read_placement(result)
    real = real_devices(found, devices)
    does = optimizer if isinstance(optimizer, str) else optimizer_name(_listed(optimizer)[0])
    program = capture_program(
        model,
        example_batch,
        loss,
        training=training,
        optimizer=does,
        clip_grad_norm=clip_grad_norm,
        step=step,
        name=name,
    )
    placement = check_placement(found, program.graph, machine_cluster(real, names=found.cluster.devices))
    tensors = named_state(model, loss, training=training)
    held = _held(program, tensors, optimizer, settings) if training else ()
    engine = Engine(
        program,
        real,
        tensors,
        schedule=found.schedule,
        settings=held,
        seed=seed,
        compile_regions=compiles_regions(found) if compile_regions is None else compile_regions,
    )
    try:
        engine.place(placement)
    except BaseException:
        engine.close()
        raise
    return PlacedStep(
        engine, tuple(each.optimizer for each in held), Unchanged(model, loss, training=training)
    )  # fmt: skip


def _held(
    program: Program,
    tensors: Mapping[str, torch.Tensor],
    optimizer: str | torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
    settings: UpdateSettings | None,
) -> tuple[HeldOptimizer, ...]:
    """The optimizers of a step that trains, made where only their names are given."""
    key_of = {source.op: source.key for source in program.sources}
    keys = state_keys(program)
    wanted: dict[str, dict[str, torch.Tensor]] = {}  # by optimizer
    for update in program.updates:
        wanted.setdefault(update.optimizer, {})[keys[update.op]] = tensors[key_of[update.parameter]]
    if isinstance(optimizer, str):
        return tuple(
            HeldOptimizer(make_optimizer(name, settings or UpdateSettings(), list(updated.values())), updated)
            for name, updated in wanted.items()
        )
    given = _listed(optimizer)
    if settings is not None:
        raise InputError(f"the settings are those of the {type(given[0]).__name__} that was given; leave out settings")
    held: list[HeldOptimizer] = []
    for name, updated in wanted.items():
        of_name = [each for each in given if optimizer_name(each) == name]
        if not of_name:
            raise InputError(f"the step updates parameters by '{name}', but no such optimizer was given; give one")
        for each in of_name[:-1]:
            its = {id(parameter) for group in each.param_groups for parameter in group["params"]}
            held.append(HeldOptimizer(each, {key: p for key, p in updated.items() if id(p) in its}))
            updated = {key: p for key, p in updated.items() if id(p) not in its}
        held.append(HeldOptimizer(of_name[-1], updated))
    return tuple(held)


def _listed(
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
) -> list[torch.optim.Optimizer]:
    given = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else list(optimizer)
    if not given:
        raise InputError("the list of optimizers is empty; give at least one, or a name")
    return given


def real_devices(result: PlacementResult, devices: str | tuple[RealDevice, ...] | None) -> tuple[RealDevice, ...]:
    """The real device for each device of a placement, in its order.

    Raises:
        InputError: There are more or fewer, or one does not exist.
    """
    names = result.cluster.devices
    if devices is None:
        try:
            return parse_devices(names)
        except InputError as error:
            raise InputError(f"the placement is for devices {', '.join(names)}: {error}; say which to use") from error
    real = parse_devices(devices) if isinstance(devices, str) else devices
    if len(real) != len(names):
        raise InputError(
            f"the placement is for {len(names)} devices ({', '.join(names)}), but {len(real)} are given to run on "
            f"({', '.join(device.name for device in real)}); give one for each"
        )
    return real
