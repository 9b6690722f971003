"""Pins, forbidden devices and reserved memory: what holds is kept, what cannot hold is refused with its reason."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from envs.clusters.cluster import Cluster, Device, DeviceSpec, Link
from envs.constraints import make_constraints, reserve_memory
from envs.make_problem import make_problem
from graphs.computation_graph import ComputationGraph, OpRecord, TensorRecord, build
from graphs.errors import InputError

GB = 10**9


def model(*, resident_bytes: int = 0) -> ComputationGraph:
    """Three layers of two ops with a parameter that is bound to its update; the input is sent in every step."""
    ops = [OpRecord("x", "input", bytes_accessed=0)]
    tensors: list[TensorRecord] = []
    bound: list[tuple[int, int]] = []
    before = 0
    for layer in ("encoder.0", "encoder.1", "decoder"):
        at = len(ops)
        resident = {"parameter": resident_bytes}
        ops.append(OpRecord(f"{layer}.weight", "parameter", module=layer, resident_bytes=resident))
        ops.append(OpRecord(f"{layer}/mm", "mm", module=layer, bytes_accessed=1000))
        ops.append(OpRecord(f"{layer}/update", "update", module=layer, bytes_accessed=100))
        bound.append((at, at + 2))
        tensors.append(TensorRecord(before, 100, (at + 1,)))
        tensors.append(TensorRecord(at, 100, (at + 1, at + 2)))
        before = at + 1
    tensors.append(TensorRecord(before, 100, (at + 2,)))
    return build("model", ops, tensors, bound)


def machine(*, memory_bytes: int = 10 * GB, gpus: int = 2) -> Cluster:
    cpu = DeviceSpec("cpu", "cpu", 100 * GB, {"float32": 1e12}, 1e3)
    gpu = DeviceSpec("gpu", "gpu", memory_bytes, {"float32": 1e12}, 1e4)
    devices = (Device("cpu:0", cpu), *(Device(f"gpu:{i}", gpu) for i in range(gpus)))
    return Cluster("machine", devices, tuple(Link("cpu:0", f"gpu:{i}", 1e3, 0.0) for i in range(gpus)))


def where(graph: ComputationGraph, cluster: Cluster, **asked: Sequence[str]) -> dict[str, set[str]]:
    """For each op the devices that its group may be on."""
    problem = make_problem(graph, cluster, **asked)  # type: ignore[arg-type]
    allowed = problem.allowed[problem.groups.group_of_op]
    return {
        name: {cluster.device_names[d] for d in np.flatnonzero(row)}
        for name, row in zip(graph.op_names, allowed, strict=True)
    }


class TestWhatHolds:
    def test_a_pattern_means_modules_with_all_inside_and_ops(self) -> None:
        for pattern in ("encoder", "encoder.*", "encoder.[01]", "enc*"):
            found = where(model(), machine(), pin=[f"{pattern}=gpu:1"])
            assert all(found[op] == {"gpu:1"} for op in found if op.startswith("encoder")), pattern
        assert where(model(), machine(), pin=["decoder/mm=gpu:0"])["decoder/mm"] == {"gpu:0"}

    def test_several_devices_and_wildcards(self) -> None:
        assert where(model(), machine(), pin=["decoder=gpu:*"])["decoder/mm"] == {"gpu:0", "gpu:1"}
        assert where(model(), machine(), pin=["decoder=cpu:0|gpu:1"])["decoder/mm"] == {"cpu:0", "gpu:1"}

    def test_lists_of_devices_and_spaces_mean_the_same(self) -> None:
        plain = make_problem(model(), machine(), pin=["decoder=gpu:0|gpu:1"])
        for pin in ({"decoder": ["gpu:0", "gpu:1"]}, {"decoder": ("gpu:*",)}, [" decoder = gpu:0 | gpu:1 "]):
            assert (make_problem(model(), machine(), pin=pin).op_allowed == plain.op_allowed).all()

    def test_forbidden_devices_are_left_out(self) -> None:
        assert where(model(), machine(), forbid=["decoder=gpu:*"])["decoder/mm"] == {"cpu:0"}

    def test_the_input_stays_where_the_machine_has_it(self) -> None:
        assert where(model(), machine(), pin=["*=gpu:0"])["x"] == {"cpu:0"}

    def test_pins_part_a_group_that_could_be_nowhere(self) -> None:
        graph = model()
        pins = [f"{layer}=gpu:{i % 2}" for i, layer in enumerate(("encoder.0", "encoder.1", "decoder"))]
        problem = make_problem(graph, machine(), groups=1, pin=pins)
        device = problem.to_ops(problem.allowed.argmax(axis=1))
        for op, name in enumerate(graph.op_names):
            if name != "x":
                assert device[op] == (2 if name.startswith("encoder.1") else 1), name

    def test_a_mapping_says_the_same(self) -> None:
        assert make_constraints({"a.*": "gpu:0"}, None, {"gpu:0": 5}) == make_constraints(
            ["a.*=gpu:0"], [], ["gpu:0=5"]
        )

    @pytest.mark.parametrize(("size", "kept"), [("2GB", 2 * GB), ("2 gb", 2 * GB), ("1.5G", 1.5 * GB), ("1GiB", 2**30)])
    def test_reserved_memory_is_not_there_to_be_used(self, size: str, kept: float) -> None:
        problem = make_problem(model(), machine(), reserve={"gpu:0": size})
        assert problem.cluster.memory_bytes.tolist() == [100 * GB, 10 * GB - kept, 10 * GB]
        assert problem.cluster.sha256 != machine().sha256
        again = reserve_memory(problem.cluster, problem.constraints)
        assert again.memory_bytes.tolist() == problem.cluster.memory_bytes.tolist()


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("asked", "said"),
        [
            ({"pin": ["decodr=gpu:0"]}, "did you mean 'decoder'"),
            ({"pin": ["decoder=gpu:7"]}, "no device 'gpu:7'"),
            ({"pin": ["decoder"]}, "not of the form PATTERN=DEVICE"),
            ({"pin": [("decoder", "gpu:0")]}, "not of the form PATTERN=DEVICE"),
            ({"pin": {"decoder": ["gpu:0", "gpu:7"]}}, "no device 'gpu:7'"),
            ({"reserve": {"gpu:0": -1}}, "'-1' is not a size"),
            ({"reserve": ["gpu:0=50%"]}, "'50%' is not a size"),
            ({"pin": ["x=gpu:0"]}, "op 'x' .input. may only be on cpu:0"),
            ({"pin": ["encoder=gpu:0", "encoder.1=gpu:1"]}, "pin 'encoder=gpu:0' and pin 'encoder.1=gpu:1' contradict"),
            ({"pin": ["decoder=gpu:0"], "forbid": ["*=gpu:0"]}, "contradict each other"),
            ({"pin": ["decoder.weight=gpu:0", "decoder/update=gpu:1"]}, "must share a device"),
            ({"forbid": ["decoder=*"]}, "forbid 'decoder=.' cannot hold"),
            ({"reserve": ["gpu:0=20GB"]}, "has 10.00 GB in all"),
            ({"reserve": ["gpu:0=much"]}, "'much' is not a size"),
            ({"reserve": ["=2GB"]}, "not of the form DEVICE=SIZE"),
        ],
    )
    def test_it_says_why(self, asked: dict[str, list[str]], said: str) -> None:
        with pytest.raises(InputError, match=said):
            make_problem(model(), machine(), **asked)  # type: ignore[arg-type]

    def test_memory_that_does_not_hold_the_pinned(self) -> None:
        graph = model(resident_bytes=4 * GB)
        assert make_problem(graph, machine(), pin=["encoder=gpu:0"]).allowed.any()
        with pytest.raises(InputError, match=r"12.00 GB resident, and it has 10.00 GB: short by 2.00 GB"):
            make_problem(graph, machine(), pin=["*=gpu:0"])
        with pytest.raises(InputError, match="reserve 'gpu:0=3GB' cannot hold"):
            make_problem(graph, machine(), pin=["encoder=gpu:0"], reserve=["gpu:0=3GB"])
