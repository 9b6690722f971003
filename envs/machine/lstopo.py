"""Reading the XML of hwloc's ``lstopo --of xml``: processors, NUMA nodes, memory, and where the accelerators hang."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from xml.etree.ElementTree import Element

from envs.machine.found import MOST_GPUS, Found, FoundGpu, FoundLink, FoundNode, bus_address
from graphs.errors import InputError

_NVIDIA, _AMD = "10de", "1002"
_GPU_CLASSES = {_NVIDIA: ("0300", "0302"), _AMD: ("0380", "1200")}
"""PCI classes of cards that compute; a graphics chip of AMD's in a processor has 0300."""

_RUNTIME = re.compile(r"(cuda|nvml|rsmi|ze)\d+")
_LANE_BYTES_PER_S = {3: 0.984615, 4: 1.969231, 5: 3.938462, 6: 7.563}
"""GB/s of a lane by PCIe generation, as hwloc counts them."""


_XGMI_UNKNOWN = 100_000
"""MB/s that hwloc before version 3 writes for xGMI, whatever the links."""


@dataclass
class _Card:
    """An accelerator on the way through the tree."""

    ways: list[Element]
    bus: str
    link_gb_per_s: float
    names: list[str] = field(default_factory=list)
    memory_bytes: int | None = None
    numbers: set[str] = field(default_factory=set)


def read_lstopo(root: Element, where: str) -> Found:
    """What ``lstopo`` says.

    Args:
        root: ``topology``.
        where: What the file is called in messages.

    Raises:
        InputError: It describes no machine.
    """
    machine = root.find("object")
    if machine is None:
        raise InputError(f"{where} describes no machine; save the output of: lstopo --of xml")
    cards: list[_Card] = []
    _walk(machine, [], cards)
    if len(cards) > MOST_GPUS:
        raise InputError(f"{where} names {len(cards)} GPUs; no more than {MOST_GPUS} are read")
    cards.sort(key=lambda card: card.bus)
    objects = list(machine.iter("object"))
    packages = [o for o in objects if o.get("type") in ("Package", "Socket")]
    nodes = _nodes(objects)
    cpu = next((_info(o, "CPUModel") for o in [*packages, machine] if _info(o, "CPUModel")), "")
    return Found(
        gpus=tuple(_found(card, nodes) for card in cards),
        paths=_paths(cards, len(nodes)),
        links=_links(root, cards, objects),
        cpu_name=cpu,
        sockets=max(1, len(packages)),
        cores=sum(o.get("type") == "Core" for o in objects) or None,
        nodes=nodes,
        memory_bytes=sum(node.memory_bytes or 0 for node in nodes) or _local_memory(machine),
        said_by=(where,),
    )


def _walk(element: Element, above: list[Element], cards: list[_Card]) -> None:
    way = [*above, element]
    if element.get("type") == "PCIDev" and _computes(element):
        cards.append(_card(element, above))
    for child in element.findall("object"):
        _walk(child, way, cards)


def _computes(device: Element) -> bool:
    said = re.match(r"([0-9a-fA-F]{4}) \[([0-9a-fA-F]{4}):", device.get("pci_type", ""))
    if device.get("subtype") == "NVSwitch" or not said:
        return False
    vendor, is_named = said[2].lower(), any(_RUNTIME.fullmatch(o.get("name", "")) for o in device.findall("object"))
    return is_named or said[1].lower() in _GPU_CLASSES.get(vendor, ())


def _card(device: Element, above: list[Element]) -> _Card:
    speed = device.get("pci_link_speed", "")
    card = _Card(above, bus_address(device.get("pci_busid", "")), float(speed) if _is_number(speed) else 0.0)
    card.numbers.add(device.get("gp_index", ""))
    for child in device.findall("object"):
        card.numbers.add(child.get("gp_index", ""))
        card.names.append(_info(child, "GPUModel"))
        for key, unit in (("CUDAGlobalMemorySize", 1024), ("RSMIVRAMSize", 1024), ("LevelZeroHBMSize", 1024)):
            size = re.fullmatch(r"(\d{1,12})(?:KiB)?", _info(child, key))  # hwloc 3 writes the unit
            if size:
                card.memory_bytes = int(size[1]) * unit
    in_brackets = re.search(r"\[(.+)\]", _info(device, "PCIDevice"))
    card.names.append(in_brackets[1] if in_brackets else _info(device, "PCIDevice"))
    return card


def _info(element: Element, name: str) -> str:
    return next((i.get("value", "").strip() for i in element.findall("info") if i.get("name") == name), "")


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\d{1,6}(\.\d{1,12})?", text) is not None


def _nodes(objects: list[Element]) -> tuple[FoundNode, ...]:
    nodes = []
    for i, element in enumerate(o for o in objects if o.get("type") == "NUMANode"):
        number = element.get("os_index", "")
        nodes.append(
            FoundNode(int(number) if re.fullmatch(r"\d{1,6}", number) else i, memory_bytes=_local_memory(element))
        )
    return tuple(nodes)


def _local_memory(element: Element) -> int | None:
    """What hwloc says of a NUMA node, and hwloc 1 of a machine that has none, in bytes."""
    memory = element.get("local_memory", "")
    return int(memory) if re.fullmatch(r"\d{1,18}", memory) else None


def _found(card: _Card, nodes: tuple[FoundNode, ...]) -> FoundGpu:
    generation, lanes = _pcie(card.link_gb_per_s)
    return FoundGpu(
        name=next(filter(None, card.names), ""),
        memory_bytes=card.memory_bytes,
        pcie_generation=generation,
        pcie_lanes=lanes,
        node=_node_above(card, {node.number for node in nodes}),
        bus=card.bus,
    )


def _node_above(card: _Card, known: set[int]) -> int | None:
    """The NUMA node of the nearest object above that has just one."""
    for element in reversed(card.ways):
        inside = [o for o in element.iter("object") if o.get("type") == "NUMANode"]
        if inside:
            numbers = {int(o.get("os_index", "-1")) for o in inside if re.fullmatch(r"\d{1,6}", o.get("os_index", ""))}
            return min(numbers & known, default=None) if len(inside) == 1 else None
    return None


def _pcie(gb_per_s: float) -> tuple[int | None, int | None]:
    """Generation and lanes of a link by its speed; of an idle card, which speaks generation 1 or 2, only the lanes."""
    for slow in (0.25, 0.5):
        lanes = gb_per_s / slow
        if gb_per_s and abs(lanes - round(lanes)) < 1e-6 and round(lanes) in (1, 2, 4, 8, 16):
            return None, round(lanes)
    for lanes, (generation, lane) in itertools.product((16, 8, 4, 2, 1), _LANE_BYTES_PER_S.items()):
        if abs(gb_per_s - lanes * lane) < 0.01 * lane:
            return generation, lanes
    return None, None


def _paths(cards: list[_Card], num_nodes: int) -> tuple[tuple[str, ...], ...]:
    """How far apart two cards are: by the nearest object above both."""
    paths = [[""] * len(cards) for _ in cards]
    for i, j in itertools.permutations(range(len(cards)), 2):
        both = [a for a, b in zip(cards[i].ways, cards[j].ways, strict=False) if a is b]
        nearest = both[-1]
        if nearest.get("type") == "Bridge" and not nearest.get("bridge_type", "").startswith("0-"):
            bridges = max(len(card.ways) - len(both) for card in (cards[i], cards[j]))
            paths[i][j] = "PIX" if bridges <= 1 else "PXB"
        elif nearest.get("type") == "Bridge":
            paths[i][j] = "PHB"
        else:
            across = nearest.get("type") in ("Machine", "System") and num_nodes > 1
            paths[i][j] = "SYS" if across else "NODE"
    return tuple(map(tuple, paths))


def _links(root: Element, cards: list[_Card], objects: list[Element]) -> tuple[FoundLink, ...]:
    """NVLinks and xGMI links, from the matrices of bandwidths that hwloc writes in MB/s, each way.

    Of xGMI, hwloc 1 and 2 write `_XGMI_UNKNOWN` for every pair; then a link has what its card's family has.
    """
    links: list[FoundLink] = []
    owner = {number: i for i, card in enumerate(cards) for number in card.numbers if number}
    switches = {o.get("gp_index", "") for o in objects if o.get("subtype") == "NVSwitch"}
    switches |= {c.get("gp_index", "") for o in objects if o.get("subtype") == "NVSwitch" for c in o.findall("object")}
    hops = _matrix(root, "XGMIHops")
    for kind, name in (("nvlink", "NVLinkBandwidth"), ("xgmi", "XGMIBandwidth")):
        table = _matrix(root, name)
        is_told = any(value != _XGMI_UNKNOWN for (a, b), value in table.items() if a != b and value)
        to_switch: dict[int, float] = {}
        for (a, b), value in table.items():
            if a not in owner or not value or a == b or (kind == "xgmi" and hops.get((a, b), 1) > 1):
                continue
            if b in switches:
                to_switch[owner[a]] = to_switch.get(owner[a], 0.0) + value * 1e6
            elif b in owner and owner[a] < owner[b]:
                known = kind == "nvlink" or is_told
                links.append(FoundLink(owner[a], owner[b], kind, bytes_per_s=value * 1e6 if known else None))
        links += [FoundLink(i, -1, kind, bytes_per_s=rate) for i, rate in sorted(to_switch.items())]
    return tuple(links)


def _matrix(root: Element, name: str) -> dict[tuple[str, str], int]:
    """A matrix of hwloc's by the numbers of its objects; empty where there is none, or not all of it."""
    table = next((e for e in root if e.tag.startswith("distances2") and e.get("name") == name), None)
    if table is None:
        return {}
    ends = [end.rpartition(":")[2] for e in table.findall("indexes") for end in (e.text or "").split()]
    values = [int(v) for e in table.findall("u64values") for v in (e.text or "").split() if v.isdigit()]
    pairs = [(a, b) for a in ends for b in ends]
    return dict(zip(pairs, values, strict=True)) if len(values) == len(pairs) else {}
