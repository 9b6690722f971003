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
      kind: gpu
      memory_bytes: 16e9
      peak_flops_per_s: {float32: 20e12, bfloat16: 40e12}
      memory_bytes_per_s: 500e9
      launch_overhead_s: 5e-6
switches: ["pcie:0"]
links:
  - {between: ["cpu:0", "pcie:0"], bytes_per_s: 12e9, latency_s: 7.5e-6}
  - {between: ["pcie:0", "gpu:0"], bytes_per_s: 12e9, latency_s: 7.5e-6}
  - {between: ["pcie:0", "gpu:1"], bytes_per_s: 12e9, latency_s: 7.5e-6}
  - {between: ["cpu:0", "gpu:2"], bytes_per_s: 12e9, latency_s: 15e-6}
  - {between: ["cpu:0", "npu:0"], bytes_per_s: 25e9, latency_s: 10e-6}
```

The fields of a spec are those of `envs.clusters.DeviceSpec`. Links are full duplex: ``bytes_per_s`` is each way.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
import yaml

from envs.clusters.cluster import Cluster, Device, DeviceSpec, Link
from graphs.errors import InputError, unknown_name
from graphs.reading import read_file

CLUSTER_FILE_SUFFIXES = (".yaml", ".yml")
"""How the name of a cluster file ends."""

_MOST_DEVICES = 1024
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


class _LinkRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    between: tuple[str, str]
    bytes_per_s: float
    latency_s: float


class _ClusterRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    format: Literal["device-cluster"]
    version: Literal[1]
    name: str
    devices: list[_DeviceRecord]
    links: list[_LinkRecord]
    switches: list[str] = []
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
        raise InputError(f"{where}: {_plain(str(error))}") from None
    try:
        return Cluster(
            name=record.name,
            devices=tuple(
                device for i, d in enumerate(record.devices) for device in _devices(d, f"devices[{i}]", specs)
            ),
            links=tuple(Link(*link.between, link.bytes_per_s, link.latency_s) for link in record.links),
            switches=tuple(record.switches),
            source=record.source,
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
    links = [
        {"between": [link.a, link.b], "bytes_per_s": link.bytes_per_s, "latency_s": link.latency_s}
        for link in cluster.links
    ]
    content = {"format": "device-cluster", "version": 1, "name": cluster.name, "source": cluster.source}
    content |= {"devices": devices, "switches": list(cluster.switches), "links": links}
    return yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)


def _devices(record: _DeviceRecord, field: str, specs: Mapping[str, DeviceSpec]) -> list[Device]:
    """The devices of one entry: one, or with `count` several that are numbered from 0."""
    if isinstance(record.spec, str):
        spec = _known(record.spec, f"{field}.spec", specs)
    else:
        spec = _own(record.spec, f"{field}.spec", specs)
    if record.count is None:
        return [Device(record.name, spec)]
    if not 1 <= record.count <= _MOST_DEVICES:
        raise InputError(f"{field}.count is {record.count}; it must be from 1 to {_MOST_DEVICES}")
    return [Device(f"{record.name}:{i}", spec) for i in range(record.count)]


def _known(name: str, field: str, specs: Mapping[str, DeviceSpec]) -> DeviceSpec:
    if name not in specs:
        raise InputError(f"{field}: {unknown_name('device spec', name, specs)}")
    return specs[name]


def _own(record: _SpecRecord, field: str, specs: Mapping[str, DeviceSpec]) -> DeviceSpec:
    """A spec that is written out, or that changes some figures of a known one."""
    given: dict[str, Any] = {}
    if record.like is not None:
        given = msgspec.structs.asdict(_record_of(_known(record.like, f"{field}.like", specs)))
    given |= {key: value for key, value in msgspec.structs.asdict(record).items() if value is not None}
    given = {key: value for key, value in given.items() if value is not None and key != "like"}
    for key in ("name", "kind", "memory_bytes", "peak_flops_per_s", "memory_bytes_per_s"):
        if key not in given:
            raise InputError(f"{field} lacks {key}; give it, or start from a known spec with 'like: NAME'")
    size = given["memory_bytes"]
    if not math.isfinite(size) or not 0 <= size < 2**63:
        raise InputError(f"{field}.memory_bytes is {size}; it must be from 0 to less than 2^63")
    given["memory_bytes"] = int(size)
    try:
        return DeviceSpec(**given)
    except InputError as error:
        raise InputError(f"{field}: {error}") from None


def _record_of(spec: DeviceSpec) -> _SpecRecord:
    return msgspec.convert(msgspec.to_builtins(spec), _SpecRecord)


def _plain(message: str) -> str:
    """A message of msgspec's with the field in front, and without its marks."""
    text, _, path = message.replace("`", "'").partition(" - at ")
    path = path.strip("'").removeprefix("$").removeprefix(".")
    return f"{path}: {text[0].lower()}{text[1:]}" if path else f"{text[0].lower()}{text[1:]}"
