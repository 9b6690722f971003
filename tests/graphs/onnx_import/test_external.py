"""Tensors that lie in files beside an ONNX model: weights are never read, what shapes need is."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphs.errors import InputError
from graphs.onnx_import.importer import load_onnx_file


def make(folder: Path, *, location: str = "m.data", offset: int | str = 0, rows: int = 2) -> Path:
    """A product with a weight of 16 x 32, a bias, and a Reshape to (rows, -1), all three in another file."""
    w, b, s = np.ones((16, 32), np.float32), np.ones(32, np.float32), np.array([rows, -1])
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Add", ["h", "b"], ["h2"]),
        helper.make_node("Reshape", ["h2", "s"], ["r"]),
        helper.make_node("Softmax", ["r"], ["y"]),
    ]
    tensors, at, data = [], 0, b""
    for name, value in (("w", w), ("b", b), ("s", s)):
        tensor = numpy_helper.from_array(value, name)
        raw = tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        start = at if offset == 0 else offset
        for key, text in (("location", location), ("offset", str(start)), ("length", str(len(raw)))):
            tensor.external_data.add(key=key, value=text)
        data, at = data + raw, at + len(raw)
        tensors.append(tensor)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 16])
    graph = helper.make_graph(nodes, "m", [x], [helper.make_empty_tensor_value_info("y")], tensors)
    folder.mkdir(exist_ok=True)
    (folder / "m.onnx").write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()
    )
    (folder / "m.data").write_bytes(data)
    return folder / "m.onnx"


def test_what_shapes_need_is_read_beside_the_model_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path / "there")
    (tmp_path / "m.data").write_bytes(bytes(10_000))  # of another model, where the user stands
    for here, given in ((tmp_path, path), (tmp_path / "there", Path("m.onnx")), (tmp_path, Path("there/m.onnx"))):
        monkeypatch.chdir(here)
        graph = load_onnx_file(given)
        assert graph.output_shapes[-1] == ((2, 64),)
        assert graph.parameter_bytes == 4 * (16 * 32 + 32)


def test_weights_are_never_needed(tmp_path: Path) -> None:
    path = make(tmp_path)
    model = onnx.load(path, load_external_data=False)
    del model.graph.initializer[2]
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, -1]), "s"))
    path.write_bytes(model.SerializeToString())
    (tmp_path / "m.data").unlink()
    assert load_onnx_file(path).output_shapes[-1] == ((2, 64),)


@pytest.mark.parametrize(
    "location", ["../m.data", "a/../../m.data", "/etc/passwd", "..\\m.data", "C:\\m.data", "", "\0"]
)
def test_files_elsewhere_are_not_read(tmp_path: Path, location: str) -> None:
    (tmp_path / "m.data").write_bytes(bytes(10_000))
    path = make(tmp_path / "sub", location=location)
    with pytest.raises(InputError, match=r"tensor 's', which shapes depend on, .* is outside the model's folder"):
        load_onnx_file(path)


def test_links_lead_only_to_where_the_model_is(tmp_path: Path) -> None:
    path = make(tmp_path / "blobs")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "model.onnx").symlink_to(path)
    (snapshot / "m.data").symlink_to(path.parent / "m.data")
    assert load_onnx_file(snapshot / "model.onnx").output_shapes[-1] == ((2, 64),)  # a download cache
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(10_000))
    lone = make(tmp_path / "lone")
    (lone.parent / "m.data").unlink()
    (lone.parent / "m.data").symlink_to(secret)
    with pytest.raises(InputError, match="is outside the model's folder"):
        load_onnx_file(lone)


def test_what_is_missing_cut_short_or_no_file(tmp_path: Path) -> None:
    path = make(tmp_path)
    data = (tmp_path / "m.data").read_bytes()
    (tmp_path / "m.data").write_bytes(data[:-1])
    with pytest.raises(InputError, match="which is too short"):
        load_onnx_file(path)
    (tmp_path / "m.data").unlink()
    with pytest.raises(InputError, match="which is not there; copy it beside the model"):
        load_onnx_file(path)
    os.mkfifo(tmp_path / "m.data")
    with pytest.raises(InputError, match="which is not a regular file"):
        load_onnx_file(path)
    (tmp_path / "m.data").unlink()
    for offset in ("-4", "x", str(2**70)):
        with pytest.raises(InputError, match="tensor 's', which shapes depend on"):
            load_onnx_file(make(tmp_path, offset=offset))
