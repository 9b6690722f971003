"""A PyTorch model -> its step as a graph, and all that it takes to run that step: `capture_program`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from graphs.capture.batches import batch_form
from graphs.capture.build import names_of, to_graph
from graphs.capture.calls import CallLog, output_uses
from graphs.capture.own_step import OwnStep
from graphs.capture.program import Call, Layout, Program, Source, TensorUse, Update
from graphs.capture.step import How, Loss, RecordedStep, record_step
from graphs.errors import InputError


def capture_program(
    model: nn.Module,
    example_batch: Any,
    loss: Loss | None = None,
    *,
    training: bool = True,
    optimizer: str = "adam",
    clip_grad_norm: float | None = None,
    step: OwnStep | None = None,
    name: str | None = None,
) -> Program:
    """Capture one step of a model so that it can be run op by op.

    The arguments are those of `graphs.capture.capture`, and so is the graph, byte for byte. What decides the control
    flow (numbers in the batch that are no tensors, the model's own attributes) is part of the program; the content of
    parameters, buffers and inputs is not.

    Raises:
        InputError: As `graphs.capture.capture`; or a part of the step cannot be run again.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model, batch = nn.Linear(4, 2), (torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64))
        >>> program = capture_program(model, batch, nn.functional.cross_entropy, optimizer="sgd")
        >>> len(program.updates), program.graph.op_names[program.calls[0].op]
        (2, './addmm_0')
    """
    log = CallLog()
    how = How(loss, training, optimizer, clip_grad_norm, step)
    recorded = record_step(model, example_batch, how, name=name, log=log)
    recorder = recorded.recorder
    graph = to_graph(recorder, recorded.name, recorded.together, recorded.aliases)
    index = {op_name: i for i, op_name in enumerate(graph.op_names)}
    position = {op: index[op_name] for op, op_name in names_of(recorder).items()}
    loss_use = None if recorded.loss is None else _dense(log.use(recorder.content, recorded.loss))
    return Program(
        graph=graph,
        calls=tuple(
            Call(position[c.op], c.function, c.args, c.kwargs, c.made, tuple(position[op] for op in c.after))
            for c in log.calls
        ),
        updates=tuple(
            Update(position[u.op], position[u.parameter], u.optimizer, u.content, u.gradient) for u in log.updates
        ),
        sources=tuple(_sources(recorded, log, position)),
        value_op=tuple(position[v.producer] for v in recorder.values),
        value_bytes=tuple(v.bytes for v in recorder.values),
        value_part=tuple(v.part for v in recorder.values),
        loss=loss_use,
        output=output_uses(recorder.content, log, recorded.output),
        optimizer=optimizer,
        training=training,
        batch=batch_form(example_batch, training),
    )


def _sources(recorded: RecordedStep, log: CallLog, position: Mapping[int, int]) -> list[Source]:
    """Parameters, buffers, inputs and constants, in the order in which they were met."""
    recorder = recorded.recorder
    sources = []
    # The first value of a source is the first that its op makes.
    first: dict[int, int] = {}
    for number, value in enumerate(recorder.values):
        first.setdefault(value.producer, number)
    for op, raw in enumerate(recorder.ops):
        if op in recorded.keys:
            kind, key = recorded.keys[op]
            fake = recorded.state[op]
            final = _dense(log.use(recorder.content, recorded.carried.get(op, fake)))
            changed = final.pieces != ((first[op], None),)
            sources.append(
                Source(
                    op=position[op],
                    value=first[op],
                    key=key,
                    kind=kind,
                    layout=Layout.of(fake),
                    storage_bytes=fake.untyped_storage().nbytes(),
                    final=final if changed and kind != "input" else None,
                )
            )
        elif raw.resident_bytes.keys() == {"constant"} and raw.name.startswith("constant/"):
            sources.append(_constant(raw.name, position[op], first[op], log.constants.get(op)))
    return sources


def _constant(name: str, op: int, value: int, content: torch.Tensor | None) -> Source:
    if content is None or content.is_meta:
        raise InputError(
            f"the step reads '{name}', a tensor that is no parameter, buffer or input and whose content is not known; "
            "make it a buffer of the model"
        )
    return Source(op, value, name, "constant", Layout.of(content), content.untyped_storage().nbytes(), content)


def _dense(use: Any) -> TensorUse:
    assert isinstance(use, TensorUse)  # a loss is one number, and what a model keeps is dense
    return use
