"""Another machine from saved outputs: what a user writes after ``--topology``."""

from __future__ import annotations

import math
import re
from pathlib import Path

from envs.clusters.device_specs import DEVICE_SPECS
from envs.machine.found import Found, merge
from envs.machine.lstopo import read_lstopo
from envs.machine.safe_xml import parse_xml
from envs.machine.smi_xml import read_smi
from envs.machine.to_cluster import Like, MachineCluster, make_machine_cluster
from envs.machine.topo_text import read_text
from graphs.errors import InputError, unknown_name
from graphs.reading import read_file

_MOST_BYTES = 2**24
_KEYS = ("gpu", "gpu.0", "cpu", "memory_bytes")


def load_topology(spec: str) -> MachineCluster:
    """The cluster of a machine by its saved outputs.

    Args:
        spec: ``FILE[,FILE...]``, and behind a colon what they do not say: ``topo.txt:gpu=rtx_3090`` for all GPUs,
            ``gpu.0=...`` for one, ``cpu=...``, ``memory_bytes=256e9`` of the host.

    Raises:
        InputError: A file cannot be read or says nothing of a machine, the files disagree, or a device is not known.
    """
    files, like = _split(spec)
    found = merge([read_topology(path) for path in files])
    name = re.sub(r"[^A-Za-z0-9_.=-]+", "-", Path(files[0]).stem).strip("-.") or "machine"
    return make_machine_cluster(found, DEVICE_SPECS, name=name, like=like)


def read_topology(path: str) -> Found:
    """What a file says of a machine, whichever of the outputs it is.

    Raises:
        InputError: It cannot be read, or is none of them.
    """
    data = read_file(path, "topology file", most_bytes=_MOST_BYTES)
    return parse_topology(data, f"topology file '{path}'")


def parse_topology(data: bytes, where: str) -> Found:
    """What the content of a file says of a machine; `where` begins the messages. As `read_topology` otherwise."""
    start = data.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:  # what PowerShell's redirection writes
            return parse_topology(data.decode("utf-16").encode(), where)
        except UnicodeDecodeError:
            raise InputError(f"{where} is not text; save the output again") from None
    if not start.startswith(b"<"):
        if b"\0" in start:
            raise InputError(f"{where} is not text; save the output again")
        found = read_text(data.decode("utf-8", "replace"), where)
    else:
        root = parse_xml(start, where)
        readers = {"nvidia_smi_log": read_smi, "topology": read_lstopo}
        if root.tag not in readers:
            raise InputError(
                f"{where} is XML of '{root.tag}', not of nvidia-smi or lstopo; save the output of: nvidia-smi -q -x, "
                "or lstopo --of xml"
            )
        found = readers[root.tag](root, where)
    return found


def _split(spec: str) -> tuple[list[str], Like]:
    """Files, and what is said of them."""
    path, colon, rest = spec.rpartition(":")
    if not colon or "=" not in rest or not path:
        path, rest = spec, ""
    files = [file.strip() for file in path.split(",") if file.strip()]
    if not files:
        raise InputError("no topology file is given; write for example --topology topo.txt")
    gpu = cpu = memory = None
    gpus: dict[int, str] = {}
    for part in filter(None, rest.split(",")):
        key, _, value = (piece.strip() for piece in part.partition("="))
        one = re.fullmatch(r"gpu\.(\d{1,4})", key)
        if one:
            gpus[int(one[1])] = value
        elif key == "gpu":
            gpu = value
        elif key == "cpu":
            cpu = value
        elif key == "memory_bytes":
            memory = _size(spec, value)
        else:
            raise unknown_name(f"key in topology '{spec}':", key, _KEYS)
    return files, Like(gpu=gpu, gpus=gpus, cpu=cpu, memory_bytes=memory)


def _size(spec: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 2**63:
        raise InputError(f"topology '{spec}': memory_bytes is '{text}'; write a number of bytes, for example 256e9")
    return value
