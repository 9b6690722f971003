"""The lists of what is known: graphs, clusters, devices, placers. Nothing here loads torch or compiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import TypeVar

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from envs.clusters.catalog import CLUSTERS, DEVICE_SPECS, OVERRIDES
from envs.clusters.cluster import Cluster, DeviceSpec
from graphs.errors import unknown_name
from graphs.zoo import ZOO
from graphs.zoo.figures import load_figures
from placement.cli import verbs
from placement.cli.shared import make_console
from placement.registry import PLACERS
from placement.text import seconds, size, table

_FEW = 12
"""Of up to so many clusters or devices their sources are shown, too."""

Thing = TypeVar("Thing")


def show_list(verb: verbs.List) -> int:
    """Print the list that a verb asks for.

    Raises:
        InputError: Nothing in the list has such a name.
    """
    make_console().print(LISTS[verb.what](verb.name))
    return 0


def _called(name: str | None, things: Mapping[str, Thing], what: str) -> dict[str, Thing]:
    """Those that have `name` in their name, or whose name is like it; without one all.

    Raises:
        InputError: There are none.
    """
    if name is None:
        return dict(things)
    found = {
        key: thing
        for key, thing in things.items()
        if name.lower() in key.lower() or fnmatchcase(key.lower(), name.lower())
    }
    if not found:
        raise unknown_name(what, name, things)
    return found


def graphs(name: str | None = None) -> RenderableType:
    """The zoo: what each workload is, and the sizes that its name may set."""
    chosen = _called(name, ZOO, "graph")
    columns = ("batch", "ops", "groups", "parameters", "GFLOP a step", "memory")
    made = table("training step", *columns, right=columns)
    for known, has in load_figures().items():
        if known not in chosen:
            continue
        sizes = size(has.parameter_bytes), f"{has.flops / 1e9:,.0f}", size(has.peak_memory_bytes)
        made.add_row(known, f"{ZOO[known].knobs['batch'].default:,}", f"{has.ops:,}", f"{has.groups:,}", *sizes)
    memory = "Memory is the peak on one device without limit: parameters, the optimizer's state and activations."
    parts: list[RenderableType] = [made, "", Text(memory, style="dim"), ""]
    for workload in chosen.values():
        parts.append(Text.assemble((workload.name, "bold"), f"  {workload.about}; trained with {workload.optimizer}"))
        knobs = Table.grid(padding=(0, 2, 0, 0))
        for key, knob in workload.knobs.items():
            knobs.add_row(f"  {key}={knob.default}", Text(knob.about, style="dim"))
        parts += [knobs, ""]
    parts.append(
        Text(
            "Set sizes in the name: nmt:layers=4,batch=128. A GRAPH may also be a graph file (.graph.json, "
            ".graph.json.gz), an ONNX file (.onnx), or FILE.py:function or python:package.module:function, which "
            "returns model, example batch and loss.",
            style="dim",
        )
    )
    return Group(*parts)


def clusters(name: str | None = None) -> RenderableType:
    """Known clusters with their devices, memory and links."""
    chosen = _called(name, CLUSTERS, "cluster")
    made = table("cluster", "devices (usable memory of each)", "links", "bandwidth", "latency", right=("links",))
    for cluster in chosen.values():
        made.add_row(
            cluster.name,
            _count_specs(cluster),
            str(len(cluster.links)),
            _range([link.bytes_per_s / 1e9 for link in cluster.links], "GB/s"),
            _range([link.latency_s * 1e6 for link in cluster.links], "us"),
        )
    names_of: dict[str, list[str]] = {}
    for cluster in chosen.values():
        names_of.setdefault(cluster.source, []).append(cluster.name)
    sources = [Text.assemble((f"{', '.join(names)}: ", "bold"), (source, "dim")) for source, names in names_of.items()]
    overrides = Table.grid(padding=(0, 2, 0, 0))
    for key, about in OVERRIDES.items():
        overrides.add_row(f"  {key}", Text(about, style="dim"))
    hint = "Change figures in the name, as in k80x4:link_bytes_per_s=2.5e9; a CLUSTER may also be a .yaml file."
    shown: list[RenderableType] = [*sources, ""] if len(chosen) <= _FEW else [_more("clusters", "dgx"), ""]
    return Group(made, "", *shown, Text(hint, style="dim"), overrides)


def devices(name: str | None = None) -> RenderableType:
    """Known models of device with the figures that the cost model uses, and where they are from."""
    chosen = _called(name, DEVICE_SPECS, "device")
    made = table(
        "device", "kind", "memory", "peak float32", "memory speed", "an op at least", right=("memory", "memory speed")
    )
    for spec in chosen.values():
        made.add_row(
            spec.name,
            spec.kind,
            size(spec.memory_bytes),
            _peak(spec),
            f"{spec.memory_bytes_per_s / 1e9:,.0f} GB/s",
            seconds(spec.launch_overhead_s),
        )
    sources = [Text.assemble((f"{spec.name}: ", "bold"), (spec.source, "dim")) for spec in chosen.values()]
    return Group(made, "", *(sources if len(chosen) <= _FEW else [_more("devices", "rtx_40")]))


def _more(what: str, example: str) -> Text:
    hint = f"With part of a name, as in placement list {what} {example}, also all figures and where they are from."
    return Text(hint, style="dim")


def placers(name: str | None = None) -> RenderableType:
    """Every placer and what it does."""
    made = table("placer", "what it does")
    for info in _called(name, PLACERS, "placer").values():
        traits = [
            name for name, has in (("learns", info.learns), ("searches", info.searches), ("exact", info.exact)) if has
        ]
        made.add_row(info.name, f"{info.summary} [{', '.join(traits)}]" if traits else info.summary)
    hint = "A placer that searches uses all of --time-limit-s; the others answer as soon as they are done."
    return Group(made, "", Text(hint, style="dim"))


LISTS: dict[str, Callable[[str | None], RenderableType]] = {
    "graphs": graphs,
    "clusters": clusters,
    "devices": devices,
    "placers": placers,
}
"""What ``placement list`` can show."""


def _count_specs(cluster: Cluster) -> str:
    specs = [device.spec for device in cluster.devices]
    return ", ".join(
        f"{specs.count(spec)} x {spec.name} ({size(spec.memory_bytes)})"
        for i, spec in enumerate(specs)
        if spec not in specs[:i]
    )


def _range(values: list[float], unit: str) -> str:
    low, high = min(values), max(values)
    return f"{low:g} {unit}" if low == high else f"{low:g}-{high:g} {unit}"


def _peak(spec: DeviceSpec) -> str:
    """Peak rate in float32, or in int8 where there is none, and the share of it that products reach."""
    dtype = "float32" if spec.computes("float32") else "int8"
    peak = f"{spec.rate_flops_per_s(dtype) / 1e12:,.2f} " + ("TFLOP/s" if dtype == "float32" else "TOP/s int8")
    share = spec.efficiency.get("product", 1.0)
    return f"{peak} x {share:.0%}" if share < 1 else peak
