"""The verbs ``import`` and ``export``: from a model to a graph file, from a placement to other programs' files."""

from __future__ import annotations

from typing import Literal, cast, get_args

from envs.constraints import parse_size
from graphs.device_kinds import parse_kinds
from graphs.errors import InputError, unknown_name
from graphs.files import SUFFIXES
from graphs.onnx_import.importer import unknown_operators
from graphs.split_tables import By
from placement import api
from placement.arguments import check_can_write, check_ends
from placement.cli import verbs
from placement.cli.shared import cluster_of_placement, make_console, status
from placement.exports.accelerate import device_map_report
from placement.exports.layer_counts import TOOLS
from placement.exports.stage_files import SCHEDULE
from placement.text import size

OpsFormat = Literal["json", "csv", "device-map", "onnxruntime", "onnx"]
"""Formats of a placement of ops."""


def import_graph(verb: verbs.Import) -> int:
    """Write a graph file and say what is in it.

    Raises:
        InputError: Bad input; one sentence.
    """
    check_ends("--out", verb.out, "graph file", SUFFIXES)
    check_can_write(verb.out)
    kinds = None if verb.device_kinds is None else parse_kinds(verb.device_kinds)
    with status(make_console(stderr=True), f"reading {verb.source}"):
        graph = api.import_graph(verb.source, verb.out, device_kinds=kinds, split_tables=_splitting(verb.split_tables))
    make_console().print(
        f"{verb.out}: {graph.name}, {graph.num_ops:,} ops, {graph.num_tensors:,} tensors, "
        f"{size(graph.parameter_bytes)} of parameters, {graph.total_flops / 1e9:,.1f} GFLOP a step",
        soft_wrap=True,
    )
    unknown = ", ".join(f"{name} ({count:,})" for name, count in unknown_operators(graph).items())
    if unknown:
        make_console(stderr=True).print(
            f"charged by their bytes alone, because the ONNX standard has no such operators: {unknown}", soft_wrap=True
        )
    return 0


def _splitting(text: str | None) -> tuple[By, int] | None:
    """How --split-tables cuts tables, and the size that the parts may have.

    Raises:
        InputError: It is not of the form ``rows:16GB``.
    """
    if text is None:
        return None
    by, colon, size_text = text.partition(":")
    if by not in get_args(By):
        raise unknown_name("way in --split-tables", by, get_args(By))
    if not colon:
        raise InputError(f"--split-tables '{text}' names no size; write {text}:16GB")
    return by, parse_size(size_text, f"--split-tables '{text}'")  # type: ignore[return-value]  # checked above


def export(verb: verbs.Export) -> int:
    """Write a file for another program, and say what it changes or needs.

    Raises:
        InputError: Bad input; one sentence.
        NoFeasiblePlacementError: What the device map says does not fit.
    """
    if verb.format == SCHEDULE or verb.format in TOOLS:
        if verb.graph is not None or verb.cluster is not None or verb.topology is not None:
            raise InputError(
                f"--format {verb.format} is of stages, which know their graph; leave out GRAPH and --cluster"
            )
        stages = api.export_stages(verb.placement, verb.out, format=verb.format)
        make_console().print(
            f"{verb.out}: {len(stages.stages)} stages of {stages.graph} on {len(stages.ranks)} ranks", soft_wrap=True
        )
        return 0
    cluster = cluster_of_placement(verb.placement, verb.graph, verb.cluster, verb.topology)
    with status(make_console(stderr=True), f"reading {verb.graph or verb.placement}"):
        form = cast("OpsFormat", verb.format)
        found = api.export(verb.placement, verb.out, graph=verb.graph, cluster=cluster, format=form)
    out, graph = make_console(), found.simulated.problem.graph
    if found.mapped is not None and found.device_map is not None:
        out.print(device_map_report(found.simulated, found.mapped, found.device_map), soft_wrap=True)
        found.mapped.check_feasible()
    if found.settings is not None:
        out.print(f"session.layer_assignment_settings: {found.settings}", soft_wrap=True)
    out.print(f"{verb.out}: {graph.num_ops:,} ops of {graph.name}", soft_wrap=True)
    return 0
