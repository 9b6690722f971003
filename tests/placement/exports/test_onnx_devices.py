"""Placements of ONNX models, written into the model: read back by ONNX, and by the settings' documented grammar."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from envs.make_problem import make_problem
from envs.problem import PlacementProblem
from graphs.computation_graph import INPUT, PARAMETER
from graphs.errors import InputError
from graphs.sources import onnx_path
from placement.cli.main import main
from placement.exports.onnx_devices import annotated_for_onnxruntime, with_device_configuration
from placement.results.simulated import Simulated, simulate_ops


def chain(path: Path, *, external: bool = False) -> str:
    """Products, one of them without a name and two with one, and what is constant."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, [8, 8], np.ones(64, np.float32).tobytes(), raw=True)
    nodes = [
        helper.make_node("Constant", [], ["c"], value=helper.make_tensor("v", TensorProto.FLOAT, [8], [1.0] * 8)),
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("Add", ["a", "c"], ["b"]),
        helper.make_node("Relu", ["b"], ["d"], name="twice"),
        helper.make_node("MatMul", ["d", "w"], ["e"], name="twice"),
        helper.make_node("Softmax", ["e"], ["y"], name="last"),
    ]
    shape = [4, 8]
    made = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [weight],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path), save_as_external_data=external, location="w.bin", size_threshold=0)
    return str(path)


def placed(path: str, devices: list[str]) -> tuple[PlacementProblem, Simulated]:
    """One of the devices for each op, in turn."""
    problem = make_problem(path, "k80x2", groups=99)
    names = list(problem.cluster.device_names)
    ops = np.array([names.index(devices[op % len(devices)]) for op in range(problem.graph.num_ops)])
    ops[problem.graph.is_type(INPUT)] = 0
    return problem, simulate_ops(problem, ops.astype(np.int32), made_by="test")


def device_of_op(problem: PlacementProblem, simulated: Simulated) -> dict[str, str]:
    graph = problem.graph
    skipped = graph.is_type(INPUT) | graph.is_type(PARAMETER)
    names = problem.cluster.device_names
    return {graph.op_names[op]: names[simulated.op_placement[op]] for op in np.flatnonzero(~skipped).tolist()}


def served_by(settings: str, annotation: str) -> str:
    """The grammar of ``session.layer_assignment_settings``: device(=exact, prefix); device(...)."""
    for rule in settings.split(";"):
        device, _, rest = rule.strip().partition("(")
        for entry in rest.removesuffix(")").split(","):
            exact = entry.strip().startswith("=")
            if annotation == entry.strip()[1:] if exact else annotation.startswith(entry.strip()):
                return device
    raise AssertionError(annotation)


def test_onnxruntime_is_told_each_nodes_kind_of_device(tmp_path: Path) -> None:
    path = chain(tmp_path / "chain.onnx")
    problem, simulated = placed(path, ["cpu:0", "gpu:1"])
    content, settings = annotated_for_onnxruntime(path, simulated)
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model)
    expected = device_of_op(problem, simulated)
    said = {}
    for node in model.graph.node:
        notes = [entry.value for entry in node.metadata_props if entry.key == "layer_ann"]
        if node.op_type != "Constant":
            said[node.output[0]] = served_by(settings, notes[0])
    by_output = {"a": "first", "b": "b", "d": "twice", "e": "twice_1", "y": "last"}
    assert said == {output: expected[op].partition(":")[0] for output, op in by_output.items()}
    with pytest.raises(InputError, match="has one execution provider for each kind"):
        annotated_for_onnxruntime(path, placed(path, ["gpu:0", "gpu:1"])[1])


def test_onnx_is_told_where_each_nodes_tensors_are(tmp_path: Path) -> None:
    path = chain(tmp_path / "chain.onnx")
    problem, simulated = placed(path, ["cpu:0", "gpu:0", "gpu:1"])
    model = onnx.load_from_string(with_device_configuration(path, simulated))
    onnx.checker.check_model(model)
    assert model.ir_version == 11
    (configuration,) = model.configuration
    assert list(configuration.device) == list(problem.cluster.device_names)
    assert configuration.num_devices == 3
    expected = device_of_op(problem, simulated)
    seen = set()
    for node in model.graph.node:
        for one in node.device_configurations:
            assert one.configuration_id == configuration.name
            devices = {configuration.device[i] for spec in one.sharding_spec for i in spec.device}
            name = {"e": "twice_1"}.get(node.output[0], node.name or node.output[0])
            assert devices == {expected[name]}
            assert {spec.tensor_name for spec in one.sharding_spec} == {*node.input, *node.output}
            seen.add(name)
    assert seen == set(expected)


def test_the_command_writes_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    chain(tmp_path / "chain.onnx", external=True)
    assert (
        main(["train", "chain.onnx", "--cluster", "k80x2", "--updates", "1", "--out", "run", "--forbid", "*=gpu:1"])
        == 0
    )
    (tmp_path / "elsewhere").mkdir()
    for form in ("onnx", "onnxruntime"):
        assert main(["export", "run", "--format", form, "--out", f"{form}.onnx"]) == 0
        onnx.checker.check_model(str(tmp_path / f"{form}.onnx"))
        assert main(["export", "run", "--format", form, "--out", f"elsewhere/{form}.onnx"]) == 2
        assert "has weights in files beside it" in capsys.readouterr().err.replace("\n", " ")
    assert "layer_ann" in (tmp_path / "onnxruntime.onnx").read_bytes().decode("latin1")
    assert main(["export", "run", "--format", "vllm", "--out", "x.txt"]) == 2


def test_what_is_no_such_model_is_refused(tmp_path: Path) -> None:
    path = chain(tmp_path / "chain.onnx")
    _, simulated = placed(path, ["cpu:0"])
    other = onnx.load(path)
    other.graph.node[1].name = "another"
    onnx.save(other, str(tmp_path / "other.onnx"))
    with pytest.raises(InputError, match="op 'first' is no node of the model"):
        with_device_configuration(tmp_path / "other.onnx", simulated)
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(InputError, match="cannot be read as an ONNX model"):
        with_device_configuration(tmp_path / "text.onnx", simulated)
    assert onnx_path("a.onnx:batch=3") == "a.onnx"
    assert onnx_path("rnnlm:steps=3") is None
    assert onnx_path("python:a.onnx:f") is None
