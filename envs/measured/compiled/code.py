"""Compiled code of graphs by PyTorch's inductor, kept by what the graph is, so that no graph is compiled twice.

Shapes are fixed, and nothing is looked at before a call. In the process a graph is known by a digest of its text;
between processes inductor's own cache on the disk knows it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from envs.measured.machine import RealDevice
from graphs.capture.program import Layout
from graphs.errors import InputError

Code = Callable[..., Sequence[torch.Tensor]]

_CODE: dict[str, Code] = {}

_SETTINGS: dict[str, Any] = {
    "cpp_wrapper": True,  # no Python between kernels, which then run without the interpreter's lock
    "emulate_precision_casts": True,  # bfloat16 and float16 are rounded where the ops one by one round
    "size_asserts": False,
    "keep_output_stride": True,
}
"""Of inductor."""


class CompileError(RuntimeError):
    """The compiler did not make it; the message says why."""


def check_can_compile(devices: Sequence[RealDevice]) -> None:
    """Raise where regions cannot be compiled.

    Raises:
        InputError: A device is a GPU, or there is no C++ compiler.
    """
    from torch._inductor import cpp_builder, exc

    for device in devices:
        if device.kind != "cpu":
            raise InputError(
                f"device '{device.name}': regions are compiled for CPU devices alone; leave out --compile-regions"
            )
    try:
        cpp_builder.get_cpp_compiler()
    except (exc.InvalidCxxCompiler, OSError, RuntimeError) as error:
        raise InputError(
            "regions are compiled by a C++ compiler, and none is found; install g++, or name one in the environment "
            "variable CXX, or leave out --compile-regions"
        ) from error


def compiled(graph: fx.Graph, inputs: Sequence[Layout], device: torch.device, threads: int) -> Code:
    """The code of a graph, which is compiled if it is a new one.

    Args:
        graph: Whose placeholders are `inputs` and whose output is a tuple.
        inputs: Layouts of what it is given.
        device: Where all of it is.
        threads: With how many its kernels compute.

    Raises:
        CompileError: The compiler fails.
    """
    text = "\n".join([str(graph), *map(str, inputs), str(device), str(threads)])
    digest = hashlib.sha256(text.encode()).hexdigest()
    if digest not in _CODE:
        count = sum(node.op == "call_function" for node in graph.nodes)
        try:
            _CODE[digest] = _compile(graph, inputs, device, threads)
        except Exception as error:  # whatever the compiler stumbles over
            text = " ".join(str(error).split())[:300]
            raise CompileError(f"{count} ops cannot be compiled together: {type(error).__name__}: {text}") from error
    return _CODE[digest]


def _compile(graph: fx.Graph, inputs: Sequence[Layout], device: torch.device, threads: int) -> Code:
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    with torch.inference_mode(False), torch.no_grad(), config.patch({**_SETTINGS, "cpp.threads": threads}):
        mode = FakeTensorMode(shape_env=ShapeEnv())
        with mode:
            given = [
                torch.empty_strided(layout.size, layout.stride, dtype=layout.dtype, device=device) for layout in inputs
            ]
        placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        for node, tensor in zip(placeholders, given, strict=True):
            node.meta["val"] = tensor
        module = fx.GraphModule(torch.nn.Module(), graph)
        code: Code = compile_fx(module, given)  # type: ignore[assignment]
        return code
