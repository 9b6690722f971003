"""Graph files: `.graph.json` and `.graph.json.gz`, written and read.

A graph file is one JSON object. It carries what the simulator needs and nothing that must be executed::

    {"format": "computation-graph", "version": 1, "name": "two products",
     "ops": [{"name": "x", "type": "input", "phase": "forward", "module": "", "module_call": 0, "flops": 0,
              "bytes_accessed": 0, "dtype": "float32", "batch": 8, "output_shapes": [[8, 4]], "resident_bytes": {}},
             ...],
     "tensors": [{"producer": "x", "bytes": 128, "consumers": ["mm"]}, ...],
     "colocation": [["weight", "update"], ...]}

The fields are those of `graphs.computation_graph.ComputationGraph`, with ops, types and modules by name. Four are
written only where they say something: an op's ``allowed_kinds`` (absent: any kind of device) and ``time_s`` (profiled
seconds by device spec; absent: none), and a tensor's ``resident`` (absent: false) and ``seconds`` (what sending it
takes between any two devices; absent: what its bytes take over the links). `graph_file_schema` gives the JSON
Schema. The same graph gives the same bytes.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import UNSET, Meta, UnsetType

from graphs.computation_graph import (
    ANY_KIND,
    DEVICE_KINDS,
    DTYPES,
    PHASES,
    RESIDENT_PARTS,
    ComputationGraph,
    OpRecord,
    TensorRecord,
    build,
)
from graphs.errors import InputError
from graphs.reading import decode_json, gunzip, is_missing, read_file

FORMAT = "computation-graph"
"""Value of the field ``format`` of every graph file."""

VERSION = 1
"""The version of the format that is written, and the only one that is read."""

SUFFIXES = (".graph.json", ".graph.json.gz")
"""How the name of a graph file ends."""

# Many programs write every number as a float: whole ones are taken.
_Size = Annotated[int, Meta(ge=0, le=2**63 - 1)] | Annotated[float, Meta(ge=0, lt=2.0**63, multiple_of=1)]
_SmallSize = Annotated[int, Meta(ge=0, le=2**31 - 1)] | Annotated[float, Meta(ge=0, lt=2.0**31, multiple_of=1)]
_Seconds = Annotated[float, Meta(ge=0)]


def _one_of(choices: Sequence[str]) -> Meta:
    """Only a note in the schema: `build` checks the value, because its message can name the op."""
    return Meta(extra_json_schema={"enum": list(choices)})


class _Op(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """One op; see `ComputationGraph` for meaning and units."""

    name: str
    type: str
    phase: Annotated[str, _one_of(PHASES)]
    module: str
    module_call: _SmallSize
    flops: _Size
    bytes_accessed: _Size
    dtype: Annotated[str, _one_of(DTYPES)]
    batch: _SmallSize
    output_shapes: tuple[tuple[_Size, ...], ...]
    resident_bytes: Annotated[
        dict[str, _Size], Meta(extra_json_schema={"propertyNames": {"enum": list(RESIDENT_PARTS)}})
    ]
    allowed_kinds: tuple[Annotated[str, _one_of(DEVICE_KINDS)], ...] | UnsetType = UNSET
    time_s: dict[str, _Seconds] | UnsetType = UNSET


class _Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """One tensor: the op that makes it, its size, the ops that read it, and seconds where bytes do not say them."""

    producer: str
    bytes: _Size
    consumers: tuple[str, ...]
    resident: bool = False
    seconds: _Seconds | UnsetType = UNSET


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A computation graph: one step of a neural network as ops and the tensors between them."""

    format: Annotated[str, Meta(extra_json_schema={"const": FORMAT})]
    version: Annotated[int, Meta(extra_json_schema={"const": VERSION})]
    name: str
    ops: Annotated[list[_Op], Meta(extra_json_schema={"minItems": 1})]
    tensors: list[_Tensor]
    colocation: list[list[str]]
    aliases: dict[str, str] = {}
    tokens: Annotated[int, Meta(ge=0)] = 0


_DECODER = msgspec.json.Decoder(_Document)
_ENCODER = msgspec.json.Encoder(order="sorted")


def graph_file_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a graph file.

    It cannot say that op names are unique, that every name refers to an op and that there is no cycle;
    `load_graph_file` checks those too.
    """
    schema: dict[str, Any] = _whole_numbers(msgspec.json.schema(_Document))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Computation graph", **schema}


def _whole_numbers(schema: Any) -> Any:
    """A schema in which a size is an integer: of which JSON Schema says, as we do, that 64.0 is one."""
    if isinstance(schema, dict):
        either = schema.get("anyOf", ())
        if [choice.get("type") for choice in either] == ["integer", "number"]:
            return either[0]
        return {key: _whole_numbers(inner) for key, inner in schema.items()}
    return [_whole_numbers(inner) for inner in schema] if isinstance(schema, list) else schema


def save_graph_file(graph: ComputationGraph, path: str | os.PathLike[str]) -> None:
    """Write a graph file, atomically: the path holds either what it held before or the whole new file.

    Args:
        graph: The graph.
        path: Ends in ``.graph.json``, or in ``.graph.json.gz`` to be compressed.

    Raises:
        InputError: The path ends in neither, or cannot be written.
    """
    path = _checked_suffix(path)
    try:
        data = encode_graph(graph)
    except UnicodeEncodeError as error:
        raise InputError(
            f"graph '{graph.name}' holds the name {error.object!r}, which is not valid Unicode text and cannot be "
            "written; rename it"
        ) from error
    write_atomically(path, gzip.compress(data, mtime=0) if path.name.endswith(".gz") else data)


def load_graph_file(path: str | os.PathLike[str]) -> ComputationGraph:
    """Read a graph file that `save_graph_file` or another tool wrote.

    Args:
        path: Ends in ``.graph.json`` or ``.graph.json.gz``.

    Returns:
        The graph; equal, down to its `sha256`, to the one that was saved.

    Raises:
        InputError: The file is missing, damaged, of another format or version, or says something that cannot be; the
            message names the file, the op and field where there is one, and what to do.
    """
    path = _checked_suffix(path)
    try:
        data = read_file(path, "graph file")
    except InputError as error:
        if is_missing(error):
            raise InputError(
                f"graph file '{path}' does not exist; check the path, or write it with 'placement import'"
            ) from error
        raise
    try:
        return decode_graph(gunzip(data) if path.name.endswith(".gz") else data)
    except InputError as error:
        raise InputError(f"graph file '{path}': {error}") from error.__cause__


def encode_graph(graph: ComputationGraph) -> bytes:
    """The bytes of an uncompressed graph file: keys sorted, one op or tensor a line."""
    ops = [_op_entry(graph, i) for i in range(graph.num_ops)]
    names = graph.op_names
    readers = [names[i] for i in graph.consumers.tolist()]
    offsets = graph.consumer_offsets.tolist()
    columns = (graph.tensor_producer, graph.tensor_bytes, graph.tensor_resident, graph.tensor_transfer_s)
    tensors = [
        _Tensor(
            names[producer],
            size,
            tuple(readers[offsets[t] : offsets[t + 1]]),
            resident,
            UNSET if math.isnan(seconds) else seconds,
        )
        for t, (producer, size, resident, seconds) in enumerate(zip(*(c.tolist() for c in columns), strict=True))
    ]
    bound: dict[int, list[str]] = {}
    for i, number in enumerate(graph.colocation.tolist()):
        if number >= 0:
            bound.setdefault(number, []).append(names[i])
    parts = {
        **({"aliases": _ENCODER.encode(dict(graph.aliases))} if graph.aliases else {}),
        "colocation": _lines([bound[number] for number in sorted(bound)]),
        "format": _ENCODER.encode(FORMAT),
        "name": _ENCODER.encode(graph.name),
        "ops": _lines(ops),
        "tensors": _lines(tensors),
        **({"tokens": _ENCODER.encode(graph.tokens)} if graph.tokens else {}),
        "version": _ENCODER.encode(VERSION),
    }
    return b"{" + b",\n".join(b'"%s":%s' % (key.encode(), value) for key, value in parts.items()) + b"}\n"


def decode_graph(data: bytes) -> ComputationGraph:
    """The graph in the bytes of an uncompressed graph file.

    Raises:
        InputError: As `load_graph_file`, without the file's name.
    """
    try:
        document = decode_json(data, _DECODER)
    except msgspec.ValidationError as error:
        _check_header(data)
        raise InputError(_explain(str(error), data)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(_explain_not_json(error, data)) from error
    _check_header(data, document)
    index = {op.name: i for i, op in enumerate(document.ops)}
    if len(index) < len(document.ops):
        twice = next(op.name for i, op in enumerate(document.ops) if index[op.name] != i)
        raise InputError(f"two ops are called '{twice}'; give every op a name of its own")

    def position(name: str, what: str) -> int:
        if name not in index:
            raise InputError(f"{what} refers to op '{name}', which does not exist; add the op or correct the name")
        return index[name]

    tensors = [
        TensorRecord(
            position(t.producer, f"tensor number {number}, field producer,"),
            int(t.bytes),
            [position(c, f"tensor number {number} (of op '{t.producer}'), field consumers,") for c in t.consumers],
            t.resident,
            math.nan if t.seconds is UNSET else t.seconds,
        )
        for number, t in enumerate(document.tensors)
    ]
    colocation = [
        [position(name, f"colocation set number {number}") for name in names]
        for number, names in enumerate(document.colocation)
    ]
    ops = [_op_record(op) for op in document.ops]
    return build(document.name, ops, tensors, colocation, document.aliases, document.tokens)


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file so that nobody, at any moment, sees a part of it: into a temporary file beside it, then renamed.

    Raises:
        InputError: The file cannot be written; the message names it and says why.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}.tmp")
    try:
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no file can have such a name"
        raise InputError(
            f"'{path}' cannot be written ({reason}); give a path in a folder that exists and may be written to"
        ) from error


def _checked_suffix(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if not path.name.endswith(SUFFIXES) or "\0" in str(path):
        raise InputError(f"'{path}' is not the name of a graph file: it must end in {' or '.join(SUFFIXES)}")
    return path


def _lines(entries: Sequence[Any]) -> bytes:
    """A JSON array with one entry a line, so that files can be compared with line tools."""
    # A newline in a string is escaped, so every newline of `encode_lines` stands between entries.
    return b"[\n" + _ENCODER.encode_lines(entries)[:-1].replace(b"\n", b",\n") + b"]" if entries else b"[]"


def _op_entry(graph: ComputationGraph, i: int) -> _Op:
    mask = int(graph.allowed_kinds[i])
    times = {spec: float(column[i]) for spec, column in graph.time_s.items() if not np.isnan(column[i])}
    return _Op(
        name=graph.op_names[i],
        type=graph.type_names[graph.op_type[i]],
        phase=PHASES[graph.phase[i]],
        module=graph.module_names[graph.module[i]],
        module_call=int(graph.module_call[i]),
        flops=int(graph.flops[i]),
        bytes_accessed=int(graph.bytes_accessed[i]),
        dtype=DTYPES[graph.dtype[i]],
        batch=int(graph.batch[i]),
        output_shapes=graph.output_shapes[i],
        resident_bytes={
            part: size for part, size in zip(RESIDENT_PARTS, graph.resident_bytes[i].tolist(), strict=True) if size
        },
        allowed_kinds=UNSET if mask == ANY_KIND else tuple(k for b, k in enumerate(DEVICE_KINDS) if mask >> b & 1),
        time_s=times or UNSET,
    )


def op_record(graph: ComputationGraph, op: int) -> OpRecord:
    """One op of a graph as the record that `graphs.computation_graph.build` makes it from."""
    return _op_record(_op_entry(graph, op))


def _op_record(op: _Op) -> OpRecord:
    return OpRecord(
        name=op.name,
        type=op.type,
        phase=op.phase,
        module=op.module,
        module_call=int(op.module_call),
        flops=int(op.flops),
        bytes_accessed=int(op.bytes_accessed),
        dtype=op.dtype,
        batch=int(op.batch),
        resident_bytes={part: int(size) for part, size in op.resident_bytes.items()},
        allowed_kinds=None if op.allowed_kinds is UNSET else op.allowed_kinds,
        output_shapes=tuple(tuple(int(size) for size in shape) for shape in op.output_shapes),
        time_s={} if op.time_s is UNSET else op.time_s,
    )


def _check_header(data: bytes, document: _Document | None = None) -> None:
    """Raise where format or version is wrong: where they are, no other complaint about the file helps."""
    raw: Any = document if document is not None else _lax(data)
    if document is None and not isinstance(raw, dict):
        raise InputError("it does not hold a JSON object, and so no graph; write it again")
    get = raw.get if isinstance(raw, dict) else lambda key: getattr(raw, key)
    if get("format") != FORMAT:
        found = f"is {_shown(get('format'))}" if get("format") is not None else "is missing"
        raise InputError(f"field format {found}, not '{FORMAT}': it is not a graph file; give one, or add the field")
    if get("version") != VERSION or isinstance(get("version"), bool):
        found = f"is {_shown(get('version'))}" if get("version") is not None else "is missing"
        raise InputError(
            f"field version {found}, but this program reads version {VERSION}; write the file again with "
            "'placement import' of this version"
        )


def _explain(message: str, data: bytes, raw: Any = None) -> str:
    """Turn a complaint in msgspec's form, which gives positions, into one that names the op and the field."""
    what, _, where = message.partition(" - at `")
    what = _lower_first(what.replace("Object ", "").replace("`", "'").replace("int | float", "int"))
    what = what.replace("'float' that's a multiple of 1", "a whole number")
    where = where.rstrip("`").removeprefix("$").removeprefix(".")
    listed = re.match(r"(ops|tensors|colocation)\[(\d+)\]\.?(.*)", where)
    if listed is None:
        return f"{f'field {where}: ' if where else ''}{what}; correct it or write the file again"
    kind, number, field = listed[1], int(listed[2]), listed[3]
    entry = (_lax(data) if raw is None else raw)[kind][number]
    if kind == "ops":
        name = entry.get("name") if isinstance(entry, dict) else None
        subject = f"op '{name}'" if isinstance(name, str) else f"op number {number}"
    elif kind == "tensors":
        producer = entry.get("producer") if isinstance(entry, dict) else None
        subject = f"tensor number {number}" + (f" (of op '{producer}')" if isinstance(producer, str) else "")
    else:
        subject = f"colocation set number {number}"
    return f"{subject}{f', field {field}' if field else ''}: {what}; correct it or write the file again"


def _lax(data: bytes) -> Any:
    """The file as plain Python values, for a message about it; the strict decoder has refused it."""
    try:
        return msgspec.json.decode(data)
    except RecursionError as error:
        raise InputError("it is nested too deeply to be a graph; write it again") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(_explain_not_json(error, data)) from error


def _explain_not_json(error: Exception, data: bytes) -> str:
    """The message for bytes that are not JSON; NaN and infinity, which some programs write, are found and named."""
    try:
        # The standard library's decoder takes NaN, Infinity and 1e999, which JSON and msgspec do not.
        raw = json.loads(data)
        odd = next(iter(_not_finite(raw, "")), None)
    except (ValueError, RecursionError):
        odd = None
    if odd is None:
        return f"it is not JSON ({_lower_first(str(error))}); write it again"
    return _explain(f"the number is {odd[1]}, but must be finite - at `${odd[0]}`", data, raw)


def _not_finite(value: Any, where: str) -> Iterator[tuple[str, float]]:
    """The places in a JSON value, as msgspec writes them, of numbers that are not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        yield where, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _not_finite(inner, f"{where}.{key}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _not_finite(inner, f"{where}[{number}]")


def _shown(value: Any) -> str:
    text = f"'{value}'" if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:] if not text[:4].isupper() else text
