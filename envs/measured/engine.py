"""Runs a captured step on real devices under a placement of its ops.

Each device is a worker (`envs.measured.worker`) with its own queue of ready tasks, in the order of the problem's
schedule: the same rule as the simulator's. A tensor that is read on another device is copied once for it, by the
receiver, and tensors are freed as soon as nobody needs them. The results are those of the model itself: the same
kernels on the same numbers, whatever the placement; only what a kernel computes in another order (of a slice that was
sent, with other threads, on another kind of device) may differ in its last bits.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from time import perf_counter
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._pytree import tree_map_only

from envs.measured.compiled.code import CompileError, check_can_compile
from envs.measured.compiled.segments import RegionCompiler
from envs.measured.machine import RealDevice
from envs.measured.ops import Binder, Random
from envs.measured.optimizers import HeldOptimizer, state_keys
from envs.measured.plan import Plan, make_plan
from envs.measured.template import Template
from envs.measured.tensors import fed, model_tensor, moved, outside, returned
from envs.measured.updates import ParameterState, UpdateSettings, make_update
from envs.measured.worker import ABORT, CLOSE, Done, Job, Worker
from graphs.capture.program import Layout, Program, TensorUse
from graphs.errors import InputError


class StepError(RuntimeError):
    """A step did not come to its end: an op raised, or it took too long."""


@dataclass(frozen=True)
class Step:
    """One step that was run.

    Attributes:
        step_time_s: Seconds from its start to the end of its last op.
        peak_memory_bytes: ``int64[D]``, the most that tensors took at a time on each device.
        loss: The loss, None where the step has none.
        output: What the model returned.
        task_start_s: ``float64[N + C]``, for each op, then each copy, when it started; NaN for what does nothing. On
            a GPU, when it was issued.
        task_end_s: ``float64[N + C]``, likewise.
    """

    step_time_s: float
    peak_memory_bytes: NDArray[np.int64]
    loss: torch.Tensor | None
    output: Any
    task_start_s: NDArray[np.float64]
    task_end_s: NDArray[np.float64]


class Engine:
    """A program, its tensors, and the workers that run it. To be closed, or used in a ``with`` statement.

    Args:
        program: From `graphs.capture.capture_program`.
        devices: Where it may run; placements are numbers of these.
        tensors: The model's parameters and buffers by name. They are used where they are, and updated there; on a GPU
            in copies, which `write_back` copies back.
        schedule: Which ready op a device runs first.
        remaining_path_s: ``float64[N]``, what the schedule ``priority`` goes by (see `envs.simulator`); by default the
            length of the longest path of ops that follow.
        settings: Of the optimizer; or optimizers of PyTorch's for all that is updated, whose settings are read and
            states kept there.
        seed: Of the step's random numbers (dropout).
        compile_regions: Let PyTorch's compiler compile the regions of steps after the first one of a placement.

    Attributes:
        plan: The placement that is run; None before `place`.
        steps: How many steps were run.
        compile_s: Seconds that compiling the regions of the placement has taken.
        states: What the optimizers keep, by the names of `envs.measured.optimizers.state_keys`.
    """

    def __init__(
        self,
        program: Program,
        devices: Sequence[RealDevice],
        tensors: Mapping[str, torch.Tensor],
        *,
        schedule: str = "priority",
        remaining_path_s: NDArray[np.float64] | None = None,
        settings: UpdateSettings | Sequence[HeldOptimizer] | None = None,
        seed: int = 0,
        compile_regions: bool = False,
    ) -> None:
        if compile_regions:
            check_can_compile(devices)
        self.program = program
        self.devices = tuple(devices)
        self.plan: Plan | None = None
        self.steps = 0
        self.states: dict[str, ParameterState] = {}
        self.compile_s = 0.0
        self._compiles = compile_regions
        self._schedule = schedule
        self._remaining = _path_lengths(program) if remaining_path_s is None else remaining_path_s
        self._optimizers = () if settings is None or isinstance(settings, UpdateSettings) else tuple(settings)
        self._optimizer_of = {key: held for held in self._optimizers for key in held.keys}
        self._settings = settings if isinstance(settings, UpdateSettings) else UpdateSettings()
        self._seed = seed
        self._torch_devices = [_torch_device(device) for device in self.devices]
        self._randoms = [Random(device) for device in self._torch_devices]
        self._own: dict[int, torch.Tensor] = {}  # by source op: the model's tensor
        self._held: dict[int, torch.Tensor] = {}  # by source op: the tensor that steps use
        for source in program.sources:
            if source.kind != "input":
                self._own[source.op] = model_tensor(source, tensors)
        self._state_keys = state_keys(program)
        self._threads_before = torch.get_num_threads()
        self._done: SimpleQueue[Done] = SimpleQueue()
        self._workers = [_make_worker(i, device, self._done) for i, device in enumerate(self.devices)]
        for worker in self._workers:
            worker.peers = [other.mailbox for other in self._workers]
            worker.start()
        self._broken = False

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def place(
        self, op_device: NDArray[np.integer], *, schedule: str | None = None, compile_regions: bool | None = None
    ) -> None:
        """Get ready to run a placement of ops, ``int[N]``.

        Args:
            op_device: Device numbers.
            schedule: Another schedule than before.
            compile_regions: Otherwise than before.

        Raises:
            InputError: Ops that must share a device do not, or a device does not exist, or regions cannot be compiled.
        """
        if compile_regions:
            check_can_compile(self.devices)
        num_ops = self.program.graph.num_ops
        self._schedule = schedule or self._schedule
        self._compiles = self._compiles if compile_regions is None else compile_regions
        self.compile_s = 0.0
        op_device = np.asarray(op_device)
        if op_device.shape != (num_ops,) or not 0 <= op_device.min() <= op_device.max() < len(self.devices):
            raise InputError(
                f"a placement to run gives each of the {num_ops} ops one of {len(self.devices)} devices; this one has "
                f"shape {list(op_device.shape)} and devices {op_device.min()} to {op_device.max()}"
            )
        plan = make_plan(self.program, op_device, len(self.devices))
        with torch.inference_mode():
            self._hold(plan)
            held = {plan.home[s.value]: self._held[s.op] for s in self.program.sources if s.op in self._held}
            updates = {}
            for update in self.program.updates:
                key = self._state_keys[update.op]
                parameter = self._held[update.parameter]
                settings = self._optimizer_of[key].current(key) if self._optimizers else self._settings
                updates[update.op] = make_update(update.optimizer, settings, parameter, self.states[key])
            binder = Binder(plan, held, self._torch_devices, self._randoms, updates)
            runs = [binder.op(i) if plan.tasks[i] is not None else None for i in range(num_ops)]
            runs += [binder.copy(copy) for copy in plan.copies]
            self._finals = [
                (self._held[s.op], binder.read_home(s.final))
                for s in self.program.sources
                if s.final is not None and s.op in self._held
            ]
            self._loss = None if self.program.loss is None else binder.read_home(self.program.loss)
            self._output = tree_map_only(TensorUse, binder.read_home, self.program.output)
        self.plan = plan
        self._wait_for_gpus()
        on_gpu = [device.type == "cuda" for device in self._torch_devices]
        self._template = Template(plan, runs, self._remaining, on_gpu)
        threads = [max(len(device.cores), 1) for device in self.devices]
        self._compiler = RegionCompiler(plan, runs, binder.layout, self._torch_devices, threads)
        self._slots_at_start: list[Any] = [None] * len(plan.place_value)
        for place, tensor in held.items():
            self._slots_at_start[place] = tensor

    def step(self, inputs: Mapping[str, torch.Tensor], *, time_limit_s: float | None = None) -> Step:
        """Run one step.

        Args:
            inputs: The tensors of the batch by their paths (``"input/0"``), as in `Source.key`.
            time_limit_s: Seconds after which it is given up; the engine is of no use then, save to be closed.

        Raises:
            StepError: An op raised, or the time is over; the message says which op on which device.
            InputError: The inputs are not those of the capture.
        """
        if self._broken or self.plan is None:
            raise StepError(
                "the engine has no placement to run"
                if not self._broken
                else "the step is closed, or one before it was given up; apply the placement again"
            )
        slots = self._slots_at_start.copy()
        with torch.inference_mode():
            for optimizer in self._optimizers:
                optimizer.begin_step(self.states)
            for source in self.program.sources:
                if source.kind == "input":
                    place = self.plan.home[source.value]
                    slots[place] = fed(source, inputs, self._torch_devices[self.plan.place_device[place]])
        job = self._template.job(slots, self._schedule)
        for random in self._randoms:
            random.step_seed = self._seed * 1_000_003 + self.steps
        self._wait_for_gpus()
        collecting = gc.isenabled()
        gc.disable()  # what a step makes is freed by counting; a collection in the middle of it would only be noise
        try:
            started_s = perf_counter()
            for worker in self._workers:
                worker.mailbox.put(job)
            reports = self._wait(job, started_s, time_limit_s)
        finally:
            if collecting:
                gc.enable()
        with torch.inference_mode():
            self._put_finals(slots)
            for optimizer in self._optimizers:
                optimizer.end_step(self.states)
        self.steps += 1
        if not job.members:
            self._make_regions(job)
        ends = [report.end_s for report in reports]
        return Step(
            step_time_s=max(ends) - started_s,
            peak_memory_bytes=np.array([report.peak_bytes for report in reports], dtype=np.int64),
            loss=None if self._loss is None else outside(self._loss, slots),
            output=returned(self._output, slots),
            task_start_s=self._starts(job) - started_s,
            task_end_s=np.array(job.end_s) - started_s,
        )

    def _put_finals(self, slots: list[Any]) -> None:
        """Give buffers what the step has left for them; one may be what another was."""
        written = {held.data_ptr() for held, _ in self._finals}
        contents = []
        for held, final in self._finals:
            content = final if isinstance(final, torch.Tensor) else final(slots)
            is_own = content.data_ptr() == held.data_ptr() and content.device == held.device
            contents.append(None if is_own else content.clone() if content.data_ptr() in written else content)
        for (held, _), found in zip(self._finals, contents, strict=True):
            if found is not None:
                held.copy_(found)

    def _make_regions(self, job: Job) -> None:
        """Let the next steps run in the regions of the first one.

        Raises:
            StepError: They cannot be compiled.
        """
        began_s = perf_counter()
        compiler = self._compiler if self._compiles else None
        try:
            self._template = self._template.in_regions(job.start_s, job.end_s, compiler)
        except CompileError as error:
            raise StepError(str(error)) from error
        if self._compiles:
            self.compile_s += perf_counter() - began_s

    def _starts(self, job: Job) -> NDArray[np.float64]:
        """When each task of a step started: an op within a region where the one before it ended."""
        start_s = np.array(job.start_s)
        for ops in job.members.values():
            start_s[ops[1:]] = [job.end_s[op] for op in ops[:-1]]
        return start_s

    @property
    def timed_out(self) -> bool:
        """Whether a step took too long, so that a worker may hang in it; the engine can then only be closed."""
        return self._broken

    def write_back(self) -> None:
        """Copy parameters and buffers that were used elsewhere back into the model's own tensors."""
        with torch.inference_mode():
            for op, own in self._own.items():
                held = self._held.get(op)
                if held is not None and held.data_ptr() != own.data_ptr():
                    own.copy_(held)

    def close(self) -> None:
        """End the workers; no thread is left unless it hangs in an op."""
        self._broken = True
        for worker in self._workers:
            worker.mailbox.put(ABORT)
            worker.mailbox.put(CLOSE)
        for worker in self._workers:
            worker.join(timeout=5.0)
        torch.set_num_threads(self._threads_before)

    def _wait_for_gpus(self) -> None:
        """Let what this thread has put on GPUs be there before workers, which have streams of their own, use it."""
        for device in self._torch_devices:
            if device.type == "cuda":
                torch.cuda.synchronize(device)

    def _wait(self, job: Job, started_s: float, time_limit_s: float | None) -> list[Done]:
        """Wait for all workers; where one fails, stop the others.

        Raises:
            StepError: One failed, or the time is over.
        """
        reports: dict[int, Done] = {}
        failed: Done | None = None
        while len(reports) < len(self._workers):
            left_s = None if time_limit_s is None else max(started_s + time_limit_s - perf_counter(), 0.0)
            try:
                report = self._done.get(timeout=left_s)
            except Empty:
                self._broken = True
                for worker in self._workers:
                    worker.mailbox.put(ABORT)
                tasks = [(worker, self._op_of(worker.running, job)) for worker in self._workers]
                busy = [f"device '{w.device.name}' was in {self._task_name(task)}" for w, task in tasks if task >= 0]
                where = f"; {' and '.join(busy)}" if busy else ""
                raise StepError(f"the step was not done after {time_limit_s:.3g} s{where}") from None
            reports[report.device] = report
            if report.error is not None and failed is None:
                failed = report
                for worker in self._workers:
                    worker.mailbox.put(ABORT)
        if failed is not None:
            for worker in self._workers:
                worker.mailbox.put(ABORT)  # clears what the others had sent before they knew
            raise StepError(self._describe(failed, job)) from failed.error
        return [reports[i] for i in range(len(self._workers))]

    def _op_of(self, task: int, job: Job) -> int:
        """The op that is under way: of a region the first that has not ended."""
        return next((op for op in job.members.get(task, []) if math.isnan(job.end_s[op])), task)

    def _describe(self, failed: Done, job: Job) -> str:
        error = failed.error
        text = " ".join(str(error).split())
        what = f"{type(error).__name__}: {text}" if text else type(error).__name__
        where = f"device '{self.devices[failed.device].name}'"
        if failed.task < 0:
            return f"{where} failed: {what}"
        return f"{self._task_name(self._op_of(failed.task, job))} failed on {where}: {what}"

    def _task_name(self, task: int) -> str:
        names, copy = self.program.graph.op_names, task - self.program.graph.num_ops
        if copy < 0:
            return f"op '{names[task]}'"
        assert self.plan is not None
        return f"the copy of what op '{names[self.program.value_op[self.plan.copies[copy].value]]}' made"

    def _hold(self, plan: Plan) -> None:
        """Have every parameter, buffer and constant on the device of its op, and the optimizer's state with it."""
        for source in self.program.sources:
            if source.kind == "input":
                continue
            device = self._torch_devices[int(plan.op_device[source.op])]
            held = self._held.get(source.op)
            if held is None:
                own = self._own[source.op]
                fits = own.device == device and Layout.of(own) == source.layout
                fits = fits and own.untyped_storage().nbytes() == source.storage_bytes and source.kind != "constant"
                held = own if fits else moved(own, source.layout, device)
            elif held.device != device:
                held = moved(held, source.layout, device)
            self._held[source.op] = held
        for update in self.program.updates:
            key = self._state_keys[update.op]
            parameter = self._held[update.parameter]
            if key not in self.states:
                self.states[key] = ParameterState(update.optimizer, parameter)
            self.states[key].move(parameter.device)
        for optimizer in self._optimizers:
            optimizer.take(self.states)


def _path_lengths(program: Program) -> NDArray[np.float64]:
    """``float64[N]``: ops on the longest path from each op on."""
    graph = program.graph
    length = np.ones(graph.num_ops)
    for producer, reader in zip(graph.edge_producer[::-1].tolist(), graph.consumers[::-1].tolist(), strict=True):
        length[producer] = max(length[producer], length[reader] + 1)
    return length


def _torch_device(device: RealDevice) -> torch.device:
    return torch.device("cpu") if device.kind == "cpu" else torch.device("cuda", device.index)


def _make_worker(index: int, device: RealDevice, done: SimpleQueue[Done]) -> Worker:
    if device.kind == "cpu":
        return Worker(index, device, done)
    from envs.measured.cuda import CudaWorker

    return CudaWorker(index, device, done)
