"""The zoo: workloads of the field, each an ordinary PyTorch module in a file of its own.

A workload's name may carry sizes: ``rnnlm``, ``nmt:layers=4,batch=128``, ``inception_v3:training=0``. Importing this
package loads no torch; `load` does.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from graphs.computation_graph import ComputationGraph
from graphs.errors import InputError, unknown_name
from graphs.zoo.cache import cached
from graphs.zoo.workloads import ZOO, Workload

__all__ = ["ZOO", "build", "canonical_name", "load", "parse"]


def load(spec: str) -> ComputationGraph:
    """The graph of a workload, by its name and optional sizes; from the cache where it has been captured before.

    Args:
        spec: For example ``"rnnlm"`` or ``"nmt:layers=4,batch=128"``.

    Raises:
        InputError: The name or a knob is unknown, or a value is not allowed.
    """
    workload, sizes = parse(spec)
    name = canonical_name(workload, sizes)
    return cached(name, lambda: _capture(workload, sizes, name))


def parse(spec: str) -> tuple[Workload, dict[str, int | str]]:
    """The workload that a text like ``"nmt:layers=4"`` names, and all its sizes.

    Raises:
        InputError: As `load`.
    """
    name, _, settings = spec.partition(":")
    if name not in ZOO:
        raise unknown_name("workload", name, ZOO)
    workload = ZOO[name]
    sizes: dict[str, int | str] = {key: knob.default for key, knob in workload.knobs.items()}
    seen: set[str] = set()
    for setting in settings.split(",") if settings else ():
        key, equals, text = (part.strip() for part in setting.partition("="))
        if not equals:
            raise InputError(f"workload '{spec}': write settings as key=value, not '{setting}'")
        if key not in workload.knobs:
            raise unknown_name(f"setting of workload '{name}'", key, workload.knobs)
        if key in seen:
            raise InputError(f"workload '{spec}': {key} is set twice")
        seen.add(key)
        sizes[key] = workload.knobs[key].parse(name, key, text)
    if sizes["dtype"] == "int8" and sizes["training"]:
        raise InputError(f"workload '{spec}': int8 is for inference; add training=0")
    return workload, sizes


def canonical_name(workload: Workload, sizes: Mapping[str, int | str]) -> str:
    """The shortest name that means these sizes: only what differs from the defaults, in the order of the knobs."""
    changed = [f"{key}={sizes[key]}" for key, knob in workload.knobs.items() if sizes[key] != knob.default]
    return f"{workload.name}:{','.join(changed)}" if changed else workload.name


def build(workload: Workload, sizes: Mapping[str, int | str]) -> tuple[Any, dict[str, Any]]:
    """A workload's model in its dtype, and an example batch as the model's arguments by name.

    Inside ``with torch.device("meta")`` neither takes memory.
    """
    import torch

    from graphs.zoo.int8 import quantize_products

    model, batch = importlib.import_module(f"graphs.zoo.{workload.name}").make(sizes)
    if sizes["dtype"] == "float32":
        return model, batch
    dtype = torch.bfloat16 if sizes["dtype"] == "int8" else getattr(torch, str(sizes["dtype"]))
    model = model.to(dtype)
    if sizes["dtype"] == "int8":
        quantize_products(model)
    return model, {key: t.to(dtype) if t.is_floating_point() else t for key, t in batch.items()}


def _capture(workload: Workload, sizes: Mapping[str, int | str], name: str) -> ComputationGraph:
    """Build the model on the meta device, so that it takes no memory, and capture it."""
    import torch

    from graphs.capture import capture

    with torch.device("meta"):
        model, batch = build(workload, sizes)
    return capture(model, batch, training=bool(sizes["training"]), optimizer=str(sizes["optimizer"]), name=name)
