"""ONNX files for tests, written in ONNX's own textual form."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import parser

from graphs.computation_graph import ComputationGraph


def save(folder: Path, text: str, *, opset: int = 17, domains: tuple[str, ...] = (), name: str = "model") -> str:
    """Write a model; the text is that of its graph, and of functions behind it."""
    imports = ", ".join([f'"" : {opset}', *(f'"{domain}" : 1' for domain in domains)])
    path = folder / f"{name}.onnx"
    onnx.save(parser.parse_model(f"<ir_version: 8, opset_import: [{imports}]> {text}"), path)
    return str(path)


def op(graph: ComputationGraph, name: str) -> int:
    """The number of an op."""
    return graph.op_names.index(name)


def types(graph: ComputationGraph) -> list[str]:
    """The types of all ops but inputs and parameters, in order."""
    names = [graph.type_names[i] for i in graph.op_type]
    return [name for name in names if name not in ("input", "parameter")]
