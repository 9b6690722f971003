"""The verb ``machine``: what this machine, or another by its saved outputs, is made of."""

from __future__ import annotations

import contextlib
import itertools

from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from envs.clusters.cluster import Cluster, DeviceSpec, Link
from envs.machine import MachineCluster
from graphs.errors import InputError
from graphs.files import write_atomically
from placement import api
from placement.arguments import check_can_write
from placement.cli import verbs
from placement.cli.shared import make_console, status
from placement.text import seconds, short, size, table

_MOST_COLUMNS = 16
"""Devices of which copies between every pair are shown."""


def machine(verb: verbs.Machine) -> int:
    """Show a machine, and write it where asked to.

    Raises:
        InputError: Bad input; one sentence.
    """
    check_can_write(verb.out, verb.diagram)
    if verb.topology is not None and verb.again:
        raise InputError("--again measures this machine, --topology describes another; leave one of them out")
    out, err = make_console(), make_console(stderr=True)
    with contextlib.ExitStack() as measuring:

        def on_measure() -> None:
            measuring.enter_context(status(err, "measuring this machine: less than a minute"))

        made = api.machine(topology=verb.topology, again=verb.again, out=verb.out, on_measure=on_measure)
    out.print(machine_report(made))
    if verb.diagram is not None:
        write_atomically(verb.diagram, mermaid(made.cluster).encode())
        out.print(f"diagram   {verb.diagram}", soft_wrap=True)
    if verb.out is not None:
        out.print(f"cluster   {verb.out}", soft_wrap=True)
        out.print(f"next      placement train nmt --cluster {verb.out}", soft_wrap=True)
    return 0


def machine_report(made: MachineCluster) -> RenderableType:
    """What a machine is made of: its devices, how they are joined, copies between them, and what was assumed."""
    cluster, measured = made.cluster, made.measured
    parts: list[RenderableType] = [_devices(cluster)]
    for memory in cluster.shared_memories:
        users = (
            f"{memory.devices[0]} to {memory.devices[-1]}" if len(memory.devices) > 2 else " and ".join(memory.devices)
        )
        parts.append(Text(f"{users} use the {memory.name}'s memory together: {size(memory.memory_bytes)}", style="dim"))
    parts += ["", topology_tree(cluster)]
    if 1 < cluster.num_devices <= _MOST_COLUMNS:
        parts += ["", _pairs(cluster)]
    if measured is not None:
        said = f"Measured on {measured.when} with PyTorch {measured.torch} in {measured.took_s:.0f} s"
        parts += ["", Text(f"{said}; again with: placement machine --again", style="dim")]
    free = _free(made)
    if free:
        parts.append(Text(free, style="dim"))
    parts += [Text(note, style="yellow") for note in made.notes]
    return Group(*parts)


def topology_tree(cluster: Cluster) -> Tree:
    """How devices and switches hang together, as text: each link once, the widest way from the first device."""
    first = cluster.device_names[0]
    tree = Tree(Text(_label(cluster, first), style="bold"))
    branches, left = {first: tree}, list(cluster.links)
    waiting = [first]
    while waiting:
        here = waiting.pop(0)
        for link in [link for link in left if here in (link.a, link.b)]:
            other = link.b if link.a == here else link.a
            left.remove(link)
            if other in branches:
                branches[here].add(Text(f"{_figures(link)} - {other}", style="dim"))
                continue
            branches[other] = branches[here].add(Text.assemble((f"{_figures(link)} - ", "dim"), _label(cluster, other)))
            waiting.append(other)
    return tree


def mermaid(cluster: Cluster) -> str:
    """The topology as a flowchart of Mermaid's."""
    vertices = [*cluster.device_names, *cluster.switches]
    number = {name: f"v{i}" for i, name in enumerate(vertices)}
    lines = ["flowchart TD"]
    lines += [f'  {number[name]}["{_quoted(_label(cluster, name))}"]' for name in cluster.device_names]
    lines += [f'  {number[name]}(["{_quoted(name)}"])' for name in cluster.switches]
    lines += [f'  {number[link.a]} ---|"{_quoted(_figures(link))}"| {number[link.b]}' for link in cluster.links]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """Text between quotes; whatever could end them, or be markup, as a character's number."""
    return "".join(c if c.isalnum() or c in " .,:/_-()" else f"#{ord(c)};" for c in text)


def _label(cluster: Cluster, name: str) -> str:
    spec = next((device.spec for device in cluster.devices if device.name == name), None)
    return short(name) if spec is None else f"{short(name)} ({short(spec.name)}, {size(spec.memory_bytes)})"


def _figures(link: Link) -> str:
    back = link.back[0]
    rate = _number(link.bytes_per_s / 1e9)
    if abs(back - link.bytes_per_s) > 0.005 * link.bytes_per_s:
        rate += f" and {_number(back / 1e9)}"
    return f"{rate} GB/s, {seconds(link.latency_s)}"


def _devices(cluster: Cluster) -> RenderableType:
    right = ("memory", "memory speed", "an op at least")
    made = table("device", "model", *right[:2], "products", right[2], right=right)
    for spec, group in itertools.groupby(cluster.devices, key=lambda device: device.spec):
        names = [device.name for device in group]
        made.add_row(
            names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}",
            short(spec.name),
            size(spec.memory_bytes),
            f"{_number(spec.memory_bytes_per_s / 1e9)} GB/s",
            _rates(spec),
            seconds(spec.launch_overhead_s),
        )
    return made


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _rates(spec: DeviceSpec) -> str:
    """What products reach, by dtype."""
    share = spec.efficiency.get("product", 1.0)
    rates = [(dtype, rate * share) for dtype, rate in spec.peak_flops_per_s.items()]
    unit, scale = ("TFLOP/s", 1e12) if max(rate for _, rate in rates) >= 1e12 else ("GFLOP/s", 1e9)
    return ", ".join(f"{dtype} {_number(rate / scale)}" for dtype, rate in rates) + f" {unit}"


def _pairs(cluster: Cluster) -> RenderableType:
    """Bandwidth of every pair's route."""
    made = table("GB/s", *cluster.device_names, right=cluster.device_names)
    routes = cluster.routes
    for i, name in enumerate(cluster.device_names):
        cells = ["" if i == j else _number(routes.bytes_per_s[i, j] / 1e9) for j in range(cluster.num_devices)]
        made.add_row(name, *cells)
    return made


def _free(made: MachineCluster) -> str:
    """How much of the memory was free, where it was looked at."""
    found = made.found
    said = []
    if found.memory_bytes is not None and found.free_bytes is not None:
        said.append(f"host {size(found.free_bytes)} of {size(found.memory_bytes)}")
    for i, gpu in enumerate(found.gpus):
        if gpu.memory_bytes is not None and gpu.free_bytes is not None:
            said.append(f"GPU {i} {size(gpu.free_bytes)} of {size(gpu.memory_bytes)}")
    return f"Memory that was free: {', '.join(said)}." if said else ""
