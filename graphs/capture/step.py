"""A PyTorch model -> the computation graph of one training or inference step.

The step really runs, forward, loss and backward, but on fake tensors that have shapes and no memory. Every ATen op that
PyTorch issues is recorded, so the graph has what eager PyTorch does: the same ops in the same order, each with the
module that it was called in. Nothing is compiled or fused; the optimizer's update is added, one fused op a parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from graphs.capture.autocast import autocast_as_on_its_device
from graphs.capture.batches import joined_batch, map_tensors, split_batch
from graphs.capture.build import OPTIMIZER_STATES, to_graph
from graphs.capture.calls import CallLog
from graphs.capture.fakes import stand_in
from graphs.capture.flex import flex_attention_as_one_op
from graphs.capture.own_step import OwnStep, RecordedUpdate, check_loss
from graphs.capture.recorder import Recorder
from graphs.capture.refusals import quiet, refusal
from graphs.capture.sparse import stored_bytes
from graphs.capture.state import StandIns, Whole, named_state, other_names
from graphs.capture.steady import Held, check_steady
from graphs.capture.tags import Tags
from graphs.capture.untouched import left_as_it_was
from graphs.capture.updates import Trained, Updates, check_clip_grad_norm
from graphs.computation_graph import ComputationGraph
from graphs.errors import InputError, unknown_name

Loss = Callable[..., torch.Tensor]


def capture(
    model: nn.Module,
    example_batch: Any,
    loss: Loss | None = None,
    *,
    training: bool = True,
    optimizer: str = "adam",
    clip_grad_norm: float | None = None,
    step: OwnStep | None = None,
    name: str | None = None,
) -> ComputationGraph:
    """Capture the graph of one step of a model.

    What the model and the loss are called with depends on the example batch:

    ==============================  =======================================================  ========================
    example_batch                   the model is called as                                   the loss is called as
    ==============================  =======================================================  ========================
    a tensor ``x``                  ``model(x)``                                             ``loss(output)``
    a dict                          ``model(**batch)``                                       ``loss(output)``
    a tuple ``(inputs, *targets)``  ``model(x)``, ``model(*inputs)`` or ``model(**inputs)``  ``loss(output, *targets)``
    ==============================  =======================================================  ========================

    where ``inputs`` is in turn a tensor, a tuple or a dict, so ``((tokens, mask), labels)`` serves a model of two
    arguments. Without a loss the model's output must be the loss, or hold it as ``output.loss`` or ``output["loss"]``.
    At these two levels lists are taken as tuples. Inside, tensors are found as by PyTorch's pytree, also in dataclasses
    and in what is registered there; another object that holds tensors is refused. What is no tensor (a number, a flag)
    is passed on as it is and a part of the step: a step that runs by a placement refuses a batch with another.

    The graph:

    - Ops are ATen ops by name (``addmm``, ``convolution_backward``); views are folded into their producers and
      allocations dropped. An in-place op makes a new tensor.
    - Every parameter and buffer is an op of type `PARAMETER`; its bytes and the optimizer's state stay resident there.
      A tied weight is one parameter. Every input tensor is an op of type `INPUT`.
    - Gradients are activations: they live from the op that makes them to the update (as after
      ``zero_grad(set_to_none=True)``). A gradient with several contributions is summed by a chain of ``add`` ops, in
      the order in which autograd does it. A parameter, that chain and its update share a device by constraint, and
      with them the norm and the product by which a gradient is clipped. What makes one factor of all norms is small.
    - Backward ops, and the sums of activations' gradients, carry the module and call of the forward op that they
      belong to. Ops of the loss, and those of a step of one's own outside of modules, have the module ``"loss"``.
    - A slice that is read (of a split, a concatenation's gradient, ...) is a tensor of its own where slices do not
      overlap; it may be freed before the rest, which eager PyTorch would keep.
    - FLOPs are those of products, convolutions and attention, and of what consists of products (`graphs.capture.flops`:
      bilinear forms, distances, factorizations, Fourier transforms); 0 for other ops.
    - A sparse tensor of coordinates is its indices and values; a tensor of a class that wraps others, as a quantized
      weight of torchao is, is what it wraps. A step with one can be captured but not run.
    - A sparse gradient (``nn.Embedding(..., sparse=True)``) is its indices and values, and the update touches its rows.
    - What one op does with many ops inside is one op only if it is an ATen op: ``nn.LSTM`` is unrolled, as one call of
      one module. To place its layers and time steps apart, call an ``nn.LSTMCell`` for each.

    Every tensor is faked on the CPU, wherever it is and whatever device the model names, so the model may be on any
    device, or on ``"meta"`` so that it needs no memory at all. Ops that differ by device are those of the CPU: dropout
    is three ops, not one, and attention with dropout is its parts. Autocast for a GPU has a GPU's rules, though. Fused
    CPU-only kernels (oneDNN, the transformer fast path) are switched off meanwhile. The model is left as it was: mode,
    hooks, buffers, gradients and attributes.

    Args:
        model: Any module that runs without looking at the values of its tensors.
        example_batch: See above. The leading dimension of its first tensor is the batch size.
        loss: See above; a function or a module, for example ``nn.CrossEntropyLoss()``. The parameters of a module are
            trained with the model's, by names that begin with ``"loss."``. Not called when not training.
        training: Capture forward, backward and update; each module keeps its mode (a batch norm in ``eval()`` stays
            frozen), but a model that is in evaluation mode as a whole is put into training mode. Otherwise capture the
            forward pass alone, in evaluation mode and without gradients; targets are then no part of the graph.
        optimizer: ``"sgd"``, ``"momentum"``, ``"rmsprop"``, ``"adam"`` or ``"adamw"``.
        clip_grad_norm: What the norm of all gradients together is clipped to before the updates, as by
            `torch.nn.utils.clip_grad_norm_`; None leaves them.
        step: Instead of a loss, the whole step as a function ``step(model, batch, update)``, which calls
            ``update(loss, parameters)`` as often as it likes: a backward and an optimizer's update of these parameters,
            at once, so that what follows reads the new ones. See `graphs.capture.own_step.Update`.
        name: The graph's name, by default the name of the model's class.

    Raises:
        InputError: The model cannot be traced, the loss is not one number, or the optimizer is unknown.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> batch = torch.zeros(32, 8), torch.zeros(32, dtype=torch.int64)
        >>> graph = capture(model, batch, nn.CrossEntropyLoss(), optimizer="sgd", name="tiny")
        >>> graph.total_flops == 2 * 32 * (8 * 16 * 2 + 16 * 4 * 3)  # no gradient of the input is needed
        True
    """
    how = How(loss, training, optimizer, clip_grad_norm, step)
    recorded = record_step(model, example_batch, how, name=name)
    return to_graph(recorded.recorder, recorded.name, recorded.together, recorded.aliases)


@dataclass(frozen=True, slots=True)
class How:
    """How a model is to be captured, see `capture`."""

    loss: Loss | None
    training: bool
    optimizer: str
    clip_grad_norm: float | None = None
    step: OwnStep | None = None

    def check(self) -> None:
        """Refuse what does not go together.

        Raises:
            InputError: One of these is not valid, or a step of one's own has a loss or does not train.
        """
        if self.optimizer not in OPTIMIZER_STATES:
            raise unknown_name("optimizer", self.optimizer, OPTIMIZER_STATES)
        check_clip_grad_norm(self.clip_grad_norm)
        if self.step is None:
            return
        if not callable(self.step):
            raise InputError(
                f"step is of type {type(self.step).__name__}, not a function; give step(model, batch, update)"
            )
        if self.loss is not None:
            raise InputError("both loss and step are given, and a step computes its losses itself; leave loss out")
        if not self.training:
            raise InputError("a step is given with training=False, but it updates parameters; leave one of both out")


@dataclass(slots=True)
class RecordedStep:
    """What recording a step came to.

    Attributes:
        recorder: All ops and values.
        name: The graph's name.
        together: Sets of ops that must share a device, see `Updates`.
        keys: For each op that stands for a tensor of the model or the batch, its kind (a kind of `Source`) and name.
        state: The stand-ins of parameters, buffers and inputs, by op.
        loss: The loss, None where there is none.
        output: What the model returned.
        aliases: Other names of the model's parameters and buffers, see `ComputationGraph`.
        carried: By the op of a buffer, the tensor that the step has put in its place, for the next step.
    """

    recorder: Recorder
    name: str
    together: list[list[int]] = field(default_factory=list)
    keys: dict[int, tuple[str, str]] = field(default_factory=dict)
    state: dict[int, torch.Tensor] = field(default_factory=dict)
    loss: torch.Tensor | None = None
    output: Any = None
    aliases: dict[str, str] = field(default_factory=dict)
    carried: dict[int, torch.Tensor] = field(default_factory=dict)


def record_step(
    model: nn.Module, example_batch: Any, how: How, *, name: str | None, log: CallLog | None = None
) -> RecordedStep:
    """Run a step on fake tensors and record it; the arguments are those of `capture`.

    Raises:
        InputError: As `capture`.
    """
    how.check()
    loss, training = how.loss, how.training
    name = name or type(model).__name__
    _check_model(model, name)
    if training:
        if isinstance(loss, nn.Module):
            _check_model(loss, type(loss).__name__, kind="loss")
        if not any(p.requires_grad for p in named_state(model, loss).values()):
            raise InputError(f"no parameter of model '{name}' requires a gradient; capture it with training=False")
    as_it_was = left_as_it_was(model, loss, how.step, example_batch)
    with _settings(training), as_it_was, FakeTensorMode(allow_non_fake_inputs=True):
        held = None if log is None else Held(model, loss)
        recorded = _record(model, example_batch, how, name, log)
        changes = [] if held is None else held.changes()
        if log is not None and changes:
            with left_as_it_was(example_batch):
                second = _record(model, example_batch, how, name, CallLog())
            check_steady(recorded.recorder, second.recorder, changes)
        return recorded


def _record(model: nn.Module, example_batch: Any, how: How, name: str, log: CallLog | None) -> RecordedStep:
    """Record one step; what it leaves in the model stays there."""
    inputs, targets = split_batch(example_batch)
    training, loss = how.training, how.loss
    fakes = _Fakes(runs=log is not None)
    inputs = fakes.of_batch(inputs, "input")
    targets = fakes.of_batch(targets, "target") if training else ()
    tags = Tags()
    first = next((t for t in fakes.batch.values() if t.dim()), None)
    if first is not None and not first.shape[0]:
        raise InputError(f"the example batch is empty: its first tensor has shape {list(first.shape)}")
    recorder = Recorder(tags, 0 if first is None else first.shape[0], log)
    recorded = RecordedStep(recorder, name, aliases=other_names(model))
    for key, tensor in fakes.batch.items():
        op = recorder.add_source(tensor, key, "", None)
        recorded.keys[op], recorded.state[op] = ("input", key), tensor
    states = OPTIMIZER_STATES[how.optimizer] if training and how.step is None else 0
    state, trained = _fake_state(recorded, named_state(model, loss, training=training), states)
    try:
        _set_modes(model, training)
        recorded.together = _run(recorded, tags, model, state, trained, (inputs, targets, example_batch), how)
    except Exception as error:
        raise refusal(error, name, model, recorder.failures) from error
    return recorded


def _set_modes(model: nn.Module, training: bool) -> None:
    """Evaluation mode for inference; in training each module keeps its own, save where all are in evaluation mode.

    A frozen batch norm is a module in evaluation mode inside a model in training; a model that was just loaded is in
    evaluation mode as a whole, and that says nothing of how it is to be trained.
    """
    if training and any(module.training for module in model.modules()):
        return
    try:
        model.train(training)
    except NotImplementedError:  # an exported program is of one mode
        for module in model.modules():
            module.training = training


def _run(
    recorded: RecordedStep,
    tags: Tags,
    model: nn.Module,
    state: Mapping[str, torch.Tensor],
    trained: Mapping[str, int],
    batch: tuple[Any, tuple[Any, ...], Any],
    how: How,
) -> list[list[int]]:
    """Run the step and record it.

    Args:
        recorded: What is to be filled.
        tags: Where ops belong.
        model: The model itself.
        state: The stand-ins of its tensors.
        trained: The ops of the parameters that require a gradient.
        batch: Inputs and targets on fake tensors, and the batch that they were made of.
        how: See there.

    Returns:
        Sets of ops that must share a device.
    """
    inputs, targets, example = batch
    args: tuple[Any, ...] = inputs if isinstance(inputs, tuple) else (inputs,)
    kwargs: dict[str, Any] = {}
    if isinstance(inputs, dict):
        args, kwargs = (), inputs
    recorder, loss = recorded.recorder, how.loss
    updates = Updates(recorder, tags, goes_on=how.step is not None)
    real = named_state(model, loss, training=how.training)

    def step(model: nn.Module) -> None:
        recorded.output = model(*args, **kwargs)
        if not how.training:
            return
        tags.set(("loss", 0))
        value = loss(recorded.output, *targets) if loss is not None else own_loss(recorded.output)
        check_loss(value)
        recorded.loss = value
        tags.begin_backward(value)
        leaves = [key for key in trained if state[key].requires_grad]  # the model may have frozen some meanwhile
        found = torch.autograd.grad(value, [state[key] for key in leaves], allow_unused=True)
        gradients = zip(leaves, found, strict=True)
        updates.add(
            [Trained(trained[key], state[key], gradient) for key, gradient in gradients if gradient is not None],
            how.optimizer,
            how.clip_grad_norm,
        )

    def own_step(model: nn.Module) -> None:
        assert how.step is not None
        ops = {key: op for op, (kind, key) in recorded.keys.items() if kind == "parameter"}
        update = RecordedUpdate(
            ops, real, state, tags, updates, optimizer=how.optimizer, clip_grad_norm=how.clip_grad_norm
        )
        tags.set(("loss", 0))
        recorded.output = how.step(model, joined_batch(example, inputs, targets), update)
        if not updates.count:
            raise InputError("the step updates nothing; let it call update(loss, parameters)")
        if isinstance(recorded.output, torch.Tensor) and recorded.output.numel() == 1:
            recorded.loss = recorded.output

    stand_ins = StandIns(real, state, recorder.failures)
    own_ways = autocast_as_on_its_device(), flex_attention_as_one_op(recorder)
    with own_ways[0], own_ways[1], stand_ins, recorder, tags.following(model):
        whole = Whole(model, loss if how.training else None, step if how.step is None else own_step)
        whole.call(state)
        _carry(recorded, whole.given_anew)
    return updates.together


def _carry(recorded: RecordedStep, given_anew: Mapping[str, torch.Tensor]) -> None:
    """Note what takes the places of buffers; a parameter stays where it is.

    Raises:
        InputError: A parameter does not, or a buffer changes its size.
    """
    is_run = recorded.recorder.log is not None  # else the graph of one step alone is wanted
    for op, (kind, key) in recorded.keys.items():
        moved = kind == "parameter" and not recorded.recorder.is_where_it_was(op, recorded.state[op])
        if is_run and (moved or (kind == "parameter" and key in given_anew)):
            raise InputError(
                f"the step puts another tensor in the place of parameter '{key}'; change it in place, as "
                "parameter.copy_(...) under torch.no_grad() does"
            )
        if kind == "buffer" and key in given_anew:
            new = given_anew[key]
            old = recorded.state[op]
            if is_run and (new.shape, new.dtype) != (old.shape, old.dtype):
                raise InputError(
                    f"the step makes buffer '{key}' {new.dtype} of shape {list(new.shape)} where it was {old.dtype} of "
                    f"shape {list(old.shape)}, so that the next step is another; keep its dtype and shape"
                )
            recorded.carried[op] = recorded.recorder.carry(op, new)


def _fake_state(
    recorded: RecordedStep, real: Mapping[str, torch.Tensor], optimizer_states: int
) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """Stand-ins for all parameters and buffers by name, and the ops of those that are trained, by name."""
    recorder = recorded.recorder
    state: dict[str, torch.Tensor] = {}
    trained: dict[str, int] = {}
    for key, tensor in real.items():
        is_parameter = isinstance(tensor, nn.Parameter)
        what = f"{'parameter' if is_parameter else 'buffer'} '{key}'"
        fake = stand_in(tensor, what, runs=recorder.log is not None)
        if not is_parameter:
            fake.requires_grad_(False)
        size = stored_bytes(fake)
        resident = {"parameter" if is_parameter else "constant": size}
        if fake.requires_grad and optimizer_states:
            resident["optimizer"] = size * optimizer_states
        op = recorder.add_source(fake, key, key.rpartition(".")[0], resident)
        recorded.keys[op], recorded.state[op] = ("parameter" if is_parameter else "buffer", key), fake
        state[key] = fake
        if fake.requires_grad:
            trained[key] = op
    return state, trained


class _Fakes:
    """Makes fake tensors for real ones, one for each, and names those of the batch."""

    def __init__(self, *, runs: bool) -> None:
        self.batch: dict[str, torch.Tensor] = {}
        self._runs = runs
        self._known: dict[int, torch.Tensor] = {}

    def of_batch(self, value: Any, path: str) -> Any:
        """The batch with every tensor replaced by a fake; a tensor that occurs twice stays one tensor."""
        return map_tensors(value, path, self._of)

    def _of(self, path: str, tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in self._known:
            fake = stand_in(tensor, f"'{path}' of the batch", runs=self._runs)
            self._known[id(tensor)] = self.batch[path] = fake
        return self._known[id(tensor)]


def own_loss(output: Any) -> torch.Tensor:
    """The loss of a model that computes it itself."""
    if isinstance(output, Mapping) and "loss" in output:
        return output["loss"]
    found = getattr(output, "loss", output)
    if not isinstance(found, torch.Tensor) or found.numel() != 1:
        raise InputError("no loss was given and the model's output is not one; pass loss=, a function of the output")
    return found


def _check_model(model: nn.Module, name: str, kind: str = "model") -> None:
    if isinstance(model, torch.export.ExportedProgram):
        raise InputError("an ExportedProgram is no module; capture its .module() with the sizes it was exported for")
    if not isinstance(model, nn.Module):
        raise InputError(f"the model must be a torch.nn.Module, not {name}")
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise InputError(f"{kind} '{name}' is compiled by torch.jit; capture the module that it was made from")
        if hasattr(module, "_packed_params"):
            raise InputError(
                f"{kind} '{name}' keeps the weights of '{path}' packed by a quantization backend, so neither their "
                "bytes nor its FLOPs can be seen; capture it before it is quantized, or use torch._int_mm"
            )
    for key, parameter in [*model.named_parameters(), *model.named_buffers()]:
        if torch.nn.parameter.is_lazy(parameter):
            raise InputError(f"{kind} '{name}' has not initialised '{key}' yet; call it once on a real batch first")


@contextmanager
def _settings(training: bool) -> Iterator[None]:
    """Gradients as the step wants them, and no kernels that only a CPU has."""
    with ExitStack() as stack:
        stack.enter_context(quiet())
        # An optimized TorchScript function does other ops the second time than the first.
        stack.enter_context(torch.jit.optimized_execution(False))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(training))
        stack.callback(torch._C._set_mkldnn_enabled, torch._C._get_mkldnn_enabled())
        torch._C._set_mkldnn_enabled(False)
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        # Where attention is not one op, a CPU would compute it in float32 whatever the model is in.
        stack.callback(
            torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp,
            torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed(),
        )
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
        yield
