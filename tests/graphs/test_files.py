"""Graph files: what is written is read back equal, and every bad file gives one sentence."""

import copy
import functools
import gzip
import json
import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphs.computation_graph import ComputationGraph, OpRecord, TensorRecord, build
from graphs.errors import InputError
from graphs.files import (
    decode_graph,
    encode_graph,
    graph_file_schema,
    load_graph_file,
    save_graph_file,
    write_atomically,
)
from graphs.synthetic import random_graph


def small_graph() -> ComputationGraph:
    """Uses every field of the format."""
    ops = [
        OpRecord("x", "input", batch=8, output_shapes=[(8, 4)], dtype="int64"),
        OpRecord("w", "parameter", module="layer", resident_bytes={"parameter": 64, "optimizer": 128}),
        OpRecord(
            "mm",
            "mm",
            module="layer",
            module_call=3,
            flops=256,
            bytes_accessed=320,
            batch=8,
            output_shapes=[(8, 4), ()],
        ),
        OpRecord("grad", "mm", phase="backward", module="layer", flops=256, time_s={"k80": 1e-05, "a100": 3e-06}),
        OpRecord("up\n\"date'é", "adam", phase="update", dtype="bfloat16", allowed_kinds=["gpu", "cpu"]),
    ]
    tensors = [
        TensorRecord(0, 128, [2, 3]),
        TensorRecord(1, 64, [2, 4], resident=True),
        TensorRecord(2, 128, [3]),
        TensorRecord(2, 4, [], transfer_s=2.5e-5),
        TensorRecord(3, 64, [4]),
    ]
    return build("small", ops, tensors, [[1, 4], [2, 3]])


def document() -> dict[str, Any]:
    return json.loads(encode_graph(small_graph()))


@st.composite
def graphs(draw: st.DrawFn) -> ComputationGraph:
    count = draw(st.integers(1, 8))
    sizes = st.integers(0, 2**40)
    ops = [
        OpRecord(
            name=f"{draw(st.text(st.characters(exclude_categories=['Cs']), max_size=3))}{i}",
            type=draw(st.sampled_from(["input", "mm", "add"])),
            phase=draw(st.sampled_from(["forward", "backward", "update"])),
            module=draw(st.sampled_from(["", "a", "a.b"])),
            module_call=draw(st.integers(0, 9)),
            flops=draw(sizes),
            bytes_accessed=draw(sizes),
            dtype=draw(st.sampled_from(["float32", "bool", "bfloat16"])),
            batch=draw(st.integers(0, 99)),
            resident_bytes=draw(st.dictionaries(st.sampled_from(["parameter", "gradient", "constant"]), sizes)),
            allowed_kinds=draw(st.none() | st.lists(st.sampled_from(["cpu", "gpu", "tpu"]), min_size=1)),
            output_shapes=draw(st.lists(st.lists(st.integers(0, 9), max_size=3).map(tuple), max_size=2)),
            time_s=draw(st.dictionaries(st.sampled_from(["k80", "t4"]), st.floats(0, 1e9))),
        )
        for i in range(count)
    ]
    tensors = [
        TensorRecord(
            producer,
            draw(sizes),
            draw(st.lists(st.integers(producer + 1, count - 1))) if producer + 1 < count else [],
            draw(st.booleans()),
            draw(st.just(math.nan) | st.floats(0, 1e9)),
        )
        for producer in draw(st.lists(st.integers(0, count - 1), max_size=10))
    ]
    return build("g", ops, tensors, draw(st.lists(st.lists(st.integers(0, count - 1), max_size=4), max_size=3)))


@settings(max_examples=50)
@given(graphs())
def test_round_trip_is_equal_in_all_that_counts(graph: ComputationGraph) -> None:
    data = encode_graph(graph)
    again = decode_graph(data)
    assert again.sha256 == graph.sha256
    assert again.name == graph.name
    assert encode_graph(again) == data


@pytest.mark.parametrize("name", ["g.graph.json", "g.graph.json.gz"])
def test_file_round_trip_gives_the_same_bytes(tmp_path: Path, name: str) -> None:
    graph = random_graph(200, resident_bytes=1000)
    save_graph_file(graph, tmp_path / name)
    assert load_graph_file(str(tmp_path / name)).sha256 == graph.sha256
    first = (tmp_path / name).read_bytes()
    os.utime(tmp_path / name, (0, 0))
    save_graph_file(load_graph_file(tmp_path / name), tmp_path / name)
    assert (tmp_path / name).read_bytes() == first
    assert os.listdir(tmp_path) == [name]


def test_every_field_is_written_as_documented() -> None:
    written = document()
    assert written["format"] == "computation-graph"
    assert written["version"] == 1
    assert written["ops"][2] == {
        "name": "mm",
        "type": "mm",
        "phase": "forward",
        "module": "layer",
        "module_call": 3,
        "flops": 256,
        "bytes_accessed": 320,
        "dtype": "float32",
        "batch": 8,
        "output_shapes": [[8, 4], []],
        "resident_bytes": {},
    }
    assert written["ops"][1]["resident_bytes"] == {"parameter": 64, "optimizer": 128}
    assert written["ops"][3]["time_s"] == {"a100": 3e-06, "k80": 1e-05}
    assert written["ops"][4]["allowed_kinds"] == ["cpu", "gpu"]
    assert written["tensors"][1] == {
        "producer": "w",
        "bytes": 64,
        "consumers": ["mm", "up\n\"date'é"],
        "resident": True,
    }
    assert written["tensors"][3] == {"producer": "mm", "bytes": 4, "consumers": [], "seconds": 2.5e-05}
    assert written["colocation"] == [["w", "up\n\"date'é"], ["mm", "grad"]]
    assert decode_graph(encode_graph(small_graph())).sha256 == small_graph().sha256


def test_files_in_any_order_of_ops_are_sorted_stably() -> None:
    content = document()
    content["ops"].reverse()
    graph = decode_graph(json.dumps(content).encode())
    assert graph.op_names == ("w", "x", "mm", "grad", "up\n\"date'é")


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(graph_file_schema())


@settings(max_examples=40)
@given(graphs())
def test_files_satisfy_the_schema(graph: ComputationGraph) -> None:
    validator().validate(json.loads(encode_graph(graph)))


@functools.cache
def validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(graph_file_schema())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["version"], 2),
        (["format"], "graph"),
        (["surplus"], 1),
        (["ops"], []),
        (["ops", 0, "flops"], -1),
        (["ops", 0, "dtype"], "float31"),
        (["ops", 0, "surplus"], 1),
        (["ops", 0, "resident_bytes"], {"weights": 1}),
        (["ops", 4, "allowed_kinds"], ["dsp"]),
        (["tensors", 0, "bytes"], 1.5),
        (["tensors", 0, "seconds"], -1.0),
        (["tensors", 0, "seconds"], "1 ms"),
    ],
)
def test_the_schema_refuses_what_the_reader_refuses(path: list[Any], value: Any) -> None:
    content = document()
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    assert not jsonschema.Draft202012Validator(graph_file_schema()).is_valid(content)
    with pytest.raises(InputError):
        decode_graph(json.dumps(content).encode())


DELETE = object()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["format"], DELETE, "field format is missing, not 'computation-graph'"),
        (["format"], "device-placement", "field format is 'device-placement', not 'computation-graph'"),
        (["version"], DELETE, "field version is missing, but this program reads version 1"),
        (["version"], 2, "field version is 2, but this program reads version 1; write the file again"),
        (["version"], True, "field version is True"),
        (["ops"], DELETE, "missing required field 'ops'"),
        (["ops"], 3, "field ops: expected 'array', got 'int'"),
        (["surplus"], 3, "contains unknown field 'surplus'"),
        (["ops", 2, "flops"], DELETE, "op 'mm': missing required field 'flops'"),
        (["ops", 2, "flops"], "1", "op 'mm', field flops: expected 'int', got 'str'"),
        (["ops", 2, "flops"], -1, "op 'mm', field flops: expected 'int' >= 0"),
        (["ops", 2, "flops"], 2**64, "op 'mm', field flops: expected 'int' <= 9223372036854775807"),
        (["ops", 2, "flops"], 10**400, "op 'mm', field flops: expected 'int' <= 9223372036854775807"),
        (["ops", 2, "flops"], float("nan"), "op 'mm', field flops: the number is nan, but must be finite"),
        (["ops", 2, "batch"], 2**31, "op 'mm', field batch: expected 'int' <= 2147483647"),
        (["ops", 2, "surplus"], 1, "op 'mm': contains unknown field 'surplus'"),
        (["ops", 2, "name"], 7, "op number 2, field name: expected 'str', got 'int'"),
        (["ops", 2, "name"], "w", "two ops are called 'w'"),
        (["ops", 2, "dtype"], "float31", "op 'mm' has dtype 'float31'; it must be one of float32, "),
        (["ops", 2, "phase"], "sideways", "op 'mm' has phase 'sideways'; it must be one of forward, backward, update"),
        (["ops", 2, "output_shapes"], [[4, -1]], "op 'mm', field output_shapes[0][1]: expected 'int' >= 0"),
        (["ops", 2, "resident_bytes"], {"weights": 1}, "op 'mm' has resident bytes of 'weights'; known parts: "),
        (["ops", 2, "allowed_kinds"], ["dsp"], "op 'mm' allows device kind 'dsp'; known: cpu, gpu, tpu"),
        (["ops", 2, "allowed_kinds"], [], "op 'mm' is allowed on no kind of device"),
        (["ops", 2, "time_s"], {"k80": -1.0}, "op 'mm', field time_s[...]: expected 'float' >= 0"),
        (["ops", 2, "time_s"], {"k80": float("inf")}, "op 'mm', field time_s.k80: the number is inf"),
        (["tensors", 0, "bytes"], -1, "tensor number 0 (of op 'x'), field bytes: expected 'int' >= 0"),
        (["tensors", 0, "producer"], "y", "tensor number 0, field producer, refers to op 'y', which does not exist"),
        (["tensors", 0, "consumers"], ["y"], "tensor number 0 (of op 'x'), field consumers, refers to op 'y', which"),
        (["tensors", 4, "consumers"], ["mm"], "has a cycle through op 'mm'"),
        (["colocation", 0], ["y"], "colocation set number 0 refers to op 'y', which does not exist"),
        (["colocation", 0], [["y"]], "colocation set number 0, field [0]: expected 'str', got 'array'"),
    ],
)
def test_bad_content_names_the_op_and_the_field(tmp_path: Path, path: list[Any], value: Any, message: str) -> None:
    content = document()
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    if value is DELETE:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    file = tmp_path / "bad.graph.json"
    file.write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        load_graph_file(file)
    assert message in str(caught.value)
    assert f"graph file '{file}'" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is not JSON"),
        (b"{", "it is not JSON"),
        (
            b'{"format": "computation-graph", "version": 1, "name": "g", "ops": [], "tensors": [], "colocation": []}',
            "it has no ops",
        ),
        (b"[1]", "it does not hold a JSON object"),
        (b'{"format": "\xff\xfe"}', "it is not JSON"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"surplus":' * 200_000, "nested too deeply"),
        (b'{"version": 1%s}' % (b"0" * 6000), "it is not JSON"),
    ],
)
def test_files_that_hold_no_graph(tmp_path: Path, data: bytes, message: str) -> None:
    file = tmp_path / "bad.graph.json"
    file.write_bytes(data)
    with pytest.raises(InputError, match=message):
        load_graph_file(file)


def test_gzip_that_is_cut_or_is_none(tmp_path: Path) -> None:
    file = tmp_path / "g.graph.json.gz"
    save_graph_file(random_graph(50), file)
    whole = file.read_bytes()
    for data in (whole[: len(whole) // 2], whole[:-3], b"", whole[:5], b"{}", whole + b"tail", whole[:-8] + b"\0" * 8):
        file.write_bytes(data)
        with pytest.raises(InputError, match=r"g\.graph\.json\.gz': |is not a whole gzip file") as caught:
            load_graph_file(file)
        assert str(file) in str(caught.value)


def test_paths_that_cannot_be_used(tmp_path: Path) -> None:
    graph = random_graph(3)
    with pytest.raises(InputError, match="does not exist; check the path"):
        load_graph_file(tmp_path / "none.graph.json")
    with pytest.raises(InputError, match=r"must end in \.graph\.json or \.graph\.json\.gz"):
        load_graph_file(tmp_path / "none.json")
    with pytest.raises(InputError, match="must end in"):
        save_graph_file(graph, tmp_path / "g.onnx")
    with pytest.raises(InputError, match="must end in"):
        load_graph_file("a\0b.graph.json")
    (tmp_path / "folder.graph.json").mkdir()
    with pytest.raises(InputError, match=r"cannot read graph file .* it is a folder"):
        load_graph_file(tmp_path / "folder.graph.json")
    with pytest.raises(InputError, match="cannot be written"):
        save_graph_file(graph, tmp_path / "folder.graph.json")
    with pytest.raises(InputError, match="cannot be written"):
        save_graph_file(graph, tmp_path / "no" / "folder" / "g.graph.json")
    assert os.listdir(tmp_path) == ["folder.graph.json"]


def test_names_that_are_no_text_are_refused_when_saving(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not valid Unicode text"):
        save_graph_file(build("g", [OpRecord("\ud800", "mm")], []), tmp_path / "g.graph.json")


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "g.graph.json"
    write_atomically(file, b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(InputError, match="No space left on device"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["g.graph.json"]


@settings(max_examples=150)
@given(st.data())
def test_no_damage_to_the_bytes_raises_anything_else(data: st.DataObject) -> None:
    whole = encode_graph(small_graph())
    compressed = data.draw(st.booleans())
    damaged = bytearray(gzip.compress(whole, mtime=0) if compressed else whole)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        kind = data.draw(st.sampled_from(["flip", "cut", "insert", "repeat"]))
        if kind == "flip":
            damaged[at] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del damaged[at : at + data.draw(st.integers(1, 20))]
        elif kind == "insert":
            damaged[at:at] = data.draw(
                st.sampled_from([b"{", b"[", b"]", b'"', b"NaN", b"-", b"9" * 30, b"null", b"\0"])
            )
        else:
            damaged[at:at] = damaged[at : at + 20]
        damaged = damaged or bytearray(b" ")  # keep a place for the next damage
    _load_or_input_error(bytes(damaged), compressed)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["w", "mm", "float32", "gpu"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150)
@given(st.data())
def test_no_change_to_the_fields_raises_anything_else(data: st.DataObject) -> None:
    content = copy.deepcopy(document())
    for _ in range(data.draw(st.integers(1, 3))):
        inner: Any = content
        while True:
            keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            if isinstance(inner[key], dict | list) and inner[key] and data.draw(st.booleans()):
                inner = inner[key]
                continue
            if data.draw(st.booleans()) and isinstance(inner, dict):
                del inner[key]
            else:
                inner[key] = data.draw(values)
            break
    _load_or_input_error(json.dumps(content).encode(), compressed=False)


def _load_or_input_error(data: bytes, compressed: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / ("g.graph.json.gz" if compressed else "g.graph.json")
        file.write_bytes(data)
        try:
            graph = load_graph_file(file)
        except InputError as error:
            message = str(error)
        else:
            assert decode_graph(encode_graph(graph)).sha256 == graph.sha256
            return
        assert str(file) in message
        assert message.isprintable()


@pytest.mark.benchmark
def test_growth_of_saving_and_loading(tmp_path: Path) -> None:
    took = {}
    for count in (10_000, 100_000):
        graph = random_graph(count)
        start = time.perf_counter()
        save_graph_file(graph, tmp_path / "g.graph.json.gz")
        middle = time.perf_counter()
        load_graph_file(tmp_path / "g.graph.json.gz")
        took[count] = (middle - start, time.perf_counter() - middle)
    save, load = (took[100_000][i] / took[10_000][i] for i in (0, 1))
    print(f"ten times the ops: saving takes {save:.1f} times as long, loading {load:.1f} times")
