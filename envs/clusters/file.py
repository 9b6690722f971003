"""Cluster files: a cluster of one's own, in YAML.

```yaml
format: device-cluster
version: 1
name: my-server
devices:
  - {name: "cpu:0", spec: haswell_18c}      # a known spec (`placement list devices`)
  - {name: gpu, count: 2, spec: t4}         # gpu:0 and gpu:1
  - name: gpu:2                             # a known spec with other figures
    spec: {like: k80, memory_bytes: 8e9}
  - name: npu:0                             # a device of one's own
    spec:
      name: my-chip
      kind: npu
      memory_bytes: 16e9
      peak_flops_per_s: {float32: 20e12, bfloat16: 40e12}
      memory_bytes_per_s: 500e9
      launch_overhead_s: 5e-6
  - {name: npu, count: 2, start: 1, spec: my-chip}                      # npu:1 and npu:2: a spec of this file
  - {name: "npu:3", spec: {like: my-chip, memory_bytes: 32e9}}
switches: ["pcie:0"]
links:
  - {between: ["cpu:0", "pcie:0"], bytes_per_s: 12e9, latency_s: 7.5e-6}
  - {between: ["pcie:0", "gpu:0-1"], bytes_per_s: 12e9, latency_s: 7.5e-6}       # a link to each of them
  - {between: ["cpu:0", "gpu:2"], bytes_per_s: 12e9, latency_s: 15e-6}
  - {between: ["cpu:0", "npu:0"], bytes_per_s: 25e9, latency_s: 10e-6, back_bytes_per_s: 20e9}
  - {all: ["npu:*"], bytes_per_s: 100e9, latency_s: 2e-6}                        # every pair of them
shared_memories:                            # may be left out
  - {name: chip-memory, devices: ["npu:0-1"], memory_bytes: 24e9}                # what they hold together
```

The fields of a spec are those of `envs.clusters.DeviceSpec`. Links are full duplex: ``bytes_per_s`` is each way, unless
``back_bytes_per_s`` (and ``back_latency_s``) say what the way back is. With ``receiver_copies: true`` the device that
receives copies the bytes itself, and computes nothing meanwhile.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
import yaml

from envs.clusters.cluster import Cluster, Device, DeviceSpec, Link
from envs.clusters.memories import SharedMemory
from graphs.errors import InputError, unknown_name
from graphs.reading import read_file

CLUSTER_FILE_SUFFIXES = (".yaml", ".yml")
"""How the name of a cluster file ends."""

_MOST_DEVICES = 1024
_MOST_LINKS = 2**15
_MOST_LIKE = 50
_MOST_BYTES = 2**22
_REMEDY = "correct it there, or begin with a copy of the example in docs/guide/clusters.md"


class _SpecRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A device spec as written in a file; what is absent comes from `like`, or from `DeviceSpec`'s defaults."""

    like: str | None = None
    name: str | None = None
    kind: str | None = None
    memory_bytes: float | None = None
    peak_flops_per_s: dict[str, float] | None = None
    memory_bytes_per_s: float | None = None
    launch_overhead_s: float | None = None
    efficiency: dict[str, float] | None = None
    tile: int | None = None
    fill_flops: float | None = None
    source: str | None = None


class _DeviceRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    name: str
    spec: str | _SpecRecord
    count: int | None = None
    start: int = 0


class _LinkRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    between: tuple[str, str] | None = None
    all: list[str] | None = None
    bytes_per_s: float
    latency_s: float
    back_bytes_per_s: float | None = None
    back_latency_s: float | None = None
    receiver_copies: bool = False


class _SharedRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    name: str
    devices: list[str]
    memory_bytes: float


class _ClusterRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    format: Literal["device-cluster"]
    version: Literal[1]
    name: str
    devices: list[_DeviceRecord]
    links: list[_LinkRecord]
    switches: list[str] = []
    shared_memories: list[_SharedRecord] = []
    source: str = ""


_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Makes plain values only; the one in C also bounds how deeply they are nested."""


def load_cluster_file(path: str | os.PathLike[str], specs: Mapping[str, DeviceSpec]) -> Cluster:
    """Read a cluster from a YAML file.

    Args:
        path: The file.
        specs: The known device specs by name.

    Raises:
        InputError: The file is missing, not YAML, or not a valid cluster; the message names the file and the field.
    """
    data = read_file(path, "cluster file", most_bytes=_MOST_BYTES)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise InputError(f"cannot read cluster file '{path}': it is not UTF-8 text; write it as such") from None
    return parse_cluster(text, specs, where=f"cluster file '{path}'")


def parse_cluster(text: str, specs: Mapping[str, DeviceSpec], *, where: str = "cluster text") -> Cluster:
    """Read a cluster from YAML text; `where` begins the error messages. As `load_cluster_file` otherwise."""
    try:
        content = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        # What is missing at the end is found on a line that the text does not have.
        last = len(text.splitlines())
        line = f" at line {min(error.problem_mark.line + 1, last)}" if error.problem_mark else ""
        raise InputError(f"{where} is not YAML: {error.problem or 'it cannot be parsed'}{line}; {_REMEDY}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{where} is not YAML: {' '.join(str(error).split())}; {_REMEDY}") from None
    if not isinstance(content, dict):
        raise InputError(f"{where} must be a mapping with the keys format, version, name, devices and links")
    try:
        # Not strict: YAML 1.1 reads 12e9, without a point and a sign, as text.
        record = msgspec.convert(content, _ClusterRecord, strict=False)
    except msgspec.ValidationError as error:
        raise InputError(f"{where}: {_plain(str(error))}; {_REMEDY}") from None
    try:
        known = _Specs(record.devices, specs)
        devices: list[Device] = []
        for i, entry in enumerate(record.devices):
            devices += _devices(entry, f"devices[{i}]", known)
            if len(devices) > _MOST_DEVICES:
                raise InputError(f"devices[{i}] makes more than {_MOST_DEVICES} devices; describe fewer")
        return Cluster(
            name=record.name,
            devices=tuple(devices),
            links=_links(record.links, [*(device.name for device in devices), *record.switches]),
            switches=tuple(record.switches),
            source=record.source,
            shared_memories=_shared(record.shared_memories, [device.name for device in devices]),
        )
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def cluster_to_yaml(cluster: Cluster, specs: Mapping[str, DeviceSpec]) -> str:
    """Write a cluster as the text of a cluster file; `parse_cluster` reads back an equal one.

    Args:
        cluster: What to write.
        specs: The known device specs by name; a device whose spec is among them is written by name, others in full.
    """
    devices = [
        {"name": d.name, "spec": d.spec.name if specs.get(d.spec.name) == d.spec else msgspec.to_builtins(d.spec)}
        for d in cluster.devices
    ]
    links = []
    for link in cluster.links:
        entry: dict[str, Any] = {
            "between": [link.a, link.b],
            "bytes_per_s": link.bytes_per_s,
            "latency_s": link.latency_s,
        }
        back = {"back_bytes_per_s": link.back_bytes_per_s, "back_latency_s": link.back_latency_s}
        entry |= {key: value for key, value in back.items() if value is not None}
        links.append(entry | ({"receiver_copies": True} if link.receiver_copies else {}))
    content = {"format": "device-cluster", "version": 1, "name": cluster.name, "source": cluster.source}
    content |= {"devices": devices, "switches": list(cluster.switches), "links": links}
    if cluster.shared_memories:
        content["shared_memories"] = [
            {"name": m.name, "devices": list(m.devices), "memory_bytes": m.memory_bytes}
            for m in cluster.shared_memories
        ]
    return yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)


class _Specs:
    """The specs that a file may name: the known ones, and those that its devices give a name of their own."""

    def __init__(self, records: Sequence[_DeviceRecord], known: Mapping[str, DeviceSpec]) -> None:
        self._known = known
        self._written = {
            record.spec.name: (record.spec, f"devices[{i}].spec")
            for i, record in reversed(list(enumerate(records)))  # of the same name the first counts
            if isinstance(record.spec, _SpecRecord) and record.spec.name is not None
        }
        self._open: list[str] = []  # what is being looked up, to find specs that are like each other

    def named(self, name: str, field: str) -> DeviceSpec:
        """The spec of a name; known ones count before those of the file."""
        if name in self._known:
            return self._known[name]
        if name not in self._written:
            raise InputError(f"{field}: {unknown_name('device spec', name, [*self._known, *self._written])}")
        if name in self._open or len(self._open) > _MOST_LIKE:
            raise InputError(f"{field}: spec '{name}' is like itself; write one of them out")
        self._open.append(name)
        try:
            return self.own(*self._written[name])
        finally:
            self._open.pop()

    def own(self, record: _SpecRecord, field: str) -> DeviceSpec:
        """A spec that is written out, or that changes some figures of another."""
        given: dict[str, Any] = {}
        if record.like is not None:
            given = msgspec.structs.asdict(_record_of(self.named(record.like, f"{field}.like")))
        given |= {key: value for key, value in msgspec.structs.asdict(record).items() if value is not None}
        given = {key: value for key, value in given.items() if value is not None and key != "like"}
        for key in ("name", "kind", "memory_bytes", "peak_flops_per_s", "memory_bytes_per_s"):
            if key not in given:
                raise InputError(f"{field} lacks {key}; give it, or start from a known spec with 'like: NAME'")
        given["memory_bytes"] = _whole_bytes(given["memory_bytes"], f"{field}.memory_bytes")
        try:
            return DeviceSpec(**given)
        except InputError as error:
            raise InputError(f"{field}: {error}") from None


def _devices(record: _DeviceRecord, field: str, specs: _Specs) -> list[Device]:
    """The devices of one entry: one, or with `count` several that are numbered from `start`."""
    spec = record.spec
    made = specs.named(spec, f"{field}.spec") if isinstance(spec, str) else specs.own(spec, f"{field}.spec")
    if record.count is None:
        if record.start:
            raise InputError(f"{field}.start is {record.start}, but there is no count; give it, or leave out start")
        return [Device(record.name, made)]
    if not 1 <= record.count <= _MOST_DEVICES:
        raise InputError(f"{field}.count is {record.count}; it must be from 1 to {_MOST_DEVICES}")
    if not 0 <= record.start < 2**31:
        raise InputError(f"{field}.start is {record.start}; it must be from 0 to {2**31 - 1}")
    return [Device(f"{record.name}:{i}", made) for i in range(record.start, record.start + record.count)]


def _links(records: Sequence[_LinkRecord], names: Sequence[str]) -> tuple[Link, ...]:
    """The links of all entries: each stands for one, for one to each of several, or for every pair of `all`."""
    made: list[Link] = []
    for i, record in enumerate(records):
        if (record.between is None) == (record.all is None):
            raise InputError(f"links[{i}] must say either between which two it is, or all that it joins")
        if record.between is not None:
            ends = [_matching(name, names, f"links[{i}].between") for name in record.between]
            pairs = [(a, b) for a in ends[0] for b in ends[1] if a != b or len(ends[0]) == len(ends[1]) == 1]
        else:
            joined = [name for text in record.all or () for name in _matching(text, names, f"links[{i}].all")]
            pairs = list(itertools.combinations(dict.fromkeys(joined), 2))
            if not pairs:
                raise InputError(f"links[{i}].all names fewer than two; give more, or leave it out")
        figures = (record.bytes_per_s, record.latency_s, record.back_bytes_per_s, record.back_latency_s)
        copies = record.receiver_copies
        made += [Link(a, b, *figures, receiver_copies=copies) for a, b in pairs]
        if len(made) > _MOST_LINKS:
            raise InputError(f"links[{i}] makes more than {_MOST_LINKS:,} links; join them by a switch")
    return tuple(made)


def _shared(records: Sequence[_SharedRecord], names: Sequence[str]) -> tuple[SharedMemory, ...]:
    made = []
    for i, record in enumerate(records):
        field = f"shared_memories[{i}]"
        devices = [name for text in record.devices for name in _matching(text, names, f"{field}.devices")]
        size = _whole_bytes(record.memory_bytes, f"{field}.memory_bytes")
        made.append(SharedMemory(record.name, tuple(devices), size))
    return tuple(made)


def _whole_bytes(size: float, field: str) -> int:
    if not math.isfinite(size) or not 0 <= size < 2**63:
        raise InputError(f"{field} is {size}; it must be from 0 to less than 2^63")
    return int(size)


def _matching(text: str, names: Sequence[str], field: str) -> list[str]:
    """The names that a text means: itself, or with ``gpu:*`` and ``gpu:0-3`` several."""
    if text in names:
        return [text]
    span = re.fullmatch(r"(.*:)(\d{1,9})-(\d{1,9})", text, re.DOTALL)
    if text.endswith(":*"):
        found = [name for name in names if name.startswith(text[:-1])]
    elif span is None:
        return [text]  # which no device or switch has: the cluster says so
    else:
        first, last = int(span[2]), int(span[3])
        found = [name for name in names if name.startswith(span[1]) and _between(name[len(span[1]) :], first, last)]
        if len(found) != last - first + 1:
            raise InputError(f"{field} names '{text}', but of these there are only {len(found)}; correct the numbers")
    if not found:
        raise InputError(f"{field} names '{text}', but no device or switch is called so; correct it")
    return found


def _between(number: str, first: int, last: int) -> bool:
    return re.fullmatch("0|[1-9][0-9]{0,8}", number) is not None and first <= int(number) <= last


def _record_of(spec: DeviceSpec) -> _SpecRecord:
    return msgspec.convert(msgspec.to_builtins(spec), _SpecRecord)


def _plain(message: str) -> str:
    """A message of msgspec's with the field in front, and without its marks."""
    text, _, path = message.replace("`", "'").partition(" - at ")
    path = path.strip("'").removeprefix("$").removeprefix(".")
    return f"{path}: {text[0].lower()}{text[1:]}" if path else f"{text[0].lower()}{text[1:]}"
