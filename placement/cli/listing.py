"""The lists of what is known: graphs, clusters, devices, placers. Nothing here loads torch or compiles."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from envs.clusters.catalog import CLUSTERS, DEVICE_SPECS, OVERRIDES
from envs.clusters.cluster import Cluster, DeviceSpec
from graphs.zoo import ZOO
from graphs.zoo.figures import load_figures
from placement.cli import verbs
from placement.cli.shared import make_console
from placement.registry import PLACERS
from placement.text import seconds, size, table


def show_list(verb: verbs.List) -> int:
    """Print the list that a verb asks for."""
    make_console().print(LISTS[verb.what]())
    return 0


def graphs() -> RenderableType:
    """The zoo: what each workload is, and the sizes that its name may set."""
    columns = ("batch", "ops", "groups", "parameters", "GFLOP a step", "memory")
    made = table("training step", *columns, right=columns)
    for name, has in load_figures().items():
        sizes = size(has.parameter_bytes), f"{has.flops / 1e9:,.0f}", size(has.peak_memory_bytes)
        made.add_row(name, f"{ZOO[name].knobs['batch'].default:,}", f"{has.ops:,}", f"{has.groups:,}", *sizes)
    memory = "Memory is the peak on one device without limit: parameters, the optimizer's state and activations."
    parts: list[RenderableType] = [made, "", Text(memory, style="dim"), ""]
    for workload in ZOO.values():
        parts.append(Text.assemble((workload.name, "bold"), f"  {workload.about}; trained with {workload.optimizer}"))
        knobs = Table.grid(padding=(0, 2, 0, 0))
        for key, knob in workload.knobs.items():
            knobs.add_row(f"  {key}={knob.default}", Text(knob.about, style="dim"))
        parts += [knobs, ""]
    parts.append(
        Text(
            "Set sizes in the name: nmt:layers=4,batch=128. A GRAPH may also be a graph file (.graph.json, "
            ".graph.json.gz), an ONNX file (.onnx) or python:package.module:function, which returns model, example "
            "batch and loss.",
            style="dim",
        )
    )
    return Group(*parts)


def clusters() -> RenderableType:
    """Known clusters with their devices, memory and links."""
    made = table("cluster", "devices (usable memory of each)", "links", "bandwidth", "latency", right=("links",))
    for cluster in CLUSTERS.values():
        made.add_row(
            cluster.name,
            _count_specs(cluster),
            str(len(cluster.links)),
            _range([link.bytes_per_s / 1e9 for link in cluster.links], "GB/s"),
            _range([link.latency_s * 1e6 for link in cluster.links], "us"),
        )
    names_of: dict[str, list[str]] = {}
    for cluster in CLUSTERS.values():
        names_of.setdefault(cluster.source, []).append(cluster.name)
    sources = [Text.assemble((f"{', '.join(names)}: ", "bold"), (source, "dim")) for source, names in names_of.items()]
    overrides = Table.grid(padding=(0, 2, 0, 0))
    for key, about in OVERRIDES.items():
        overrides.add_row(f"  {key}", Text(about, style="dim"))
    hint = "Change figures in the name, as in k80x4:link_bytes_per_s=2.5e9; a CLUSTER may also be a .yaml file."
    return Group(made, "", *sources, "", Text(hint, style="dim"), overrides)


def devices() -> RenderableType:
    """Known models of device with the figures that the cost model uses, and where they are from."""
    made = table(
        "device", "kind", "memory", "peak float32", "memory speed", "an op at least", right=("memory", "memory speed")
    )
    for spec in DEVICE_SPECS.values():
        made.add_row(
            spec.name,
            spec.kind,
            size(spec.memory_bytes),
            _peak(spec),
            f"{spec.memory_bytes_per_s / 1e9:,.0f} GB/s",
            seconds(spec.launch_overhead_s),
        )
    sources = [Text.assemble((f"{spec.name}: ", "bold"), (spec.source, "dim")) for spec in DEVICE_SPECS.values()]
    return Group(made, "", *sources)


def placers() -> RenderableType:
    """Every placer and what it does."""
    made = table("placer", "what it does")
    for info in PLACERS.values():
        traits = [
            name for name, has in (("learns", info.learns), ("searches", info.searches), ("exact", info.exact)) if has
        ]
        made.add_row(info.name, f"{info.summary} [{', '.join(traits)}]" if traits else info.summary)
    hint = "A placer that searches uses all of --time-limit-s; the others answer as soon as they are done."
    return Group(made, "", Text(hint, style="dim"))


LISTS: dict[str, Callable[[], RenderableType]] = {
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
