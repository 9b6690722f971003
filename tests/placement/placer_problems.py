"""Small problems for the placers' tests."""

from __future__ import annotations

import dataclasses

import numpy as np

from envs.clusters.cluster import Cluster, Device, DeviceSpec, Link
from envs.problem import PlacementProblem
from graphs.colocation.groups import Groups, make_groups, one_group_an_op
from graphs.computation_graph import ComputationGraph, OpRecord, TensorRecord, build
from graphs.synthetic import random_graph

GPU = DeviceSpec("tiny_gpu", "gpu", 10**12, {"float32": 1e12}, 1e11, launch_overhead_s=5e-6)
CPU = DeviceSpec("tiny_cpu", "cpu", 10**12, {"float32": 1e11}, 2e10, launch_overhead_s=2e-6)


def cluster(gpus: int, *, cpu: bool = True, gpu_bytes: int = 10**12, cpu_bytes: int = 10**12) -> Cluster:
    """A CPU and `gpus` GPUs, each on a link to one switch."""
    gpu_spec = dataclasses.replace(GPU, memory_bytes=gpu_bytes)
    cpu_spec = dataclasses.replace(CPU, memory_bytes=cpu_bytes)
    devices = [Device("cpu:0", cpu_spec)] if cpu else []
    devices += [Device(f"gpu:{i}", gpu_spec) for i in range(gpus)]
    links = tuple(Link(d.name, "switch", 1e10, 1e-5) for d in devices)
    return Cluster(f"tiny{gpus}", tuple(devices), links, ("switch",))


def training_graph(num_groups: int, *, seed: int, width: int = 2) -> tuple[ComputationGraph, Groups]:
    """A random forward graph of one op a group, its backward in reverse, and a parameter and an update a group.

    The graph of its groups has cycles, as every real training graph's has.
    """
    rng = np.random.default_rng(seed)
    ops = [OpRecord("x", "input", output_shapes=((8,),))]
    tensors: list[TensorRecord] = []
    label = [0]

    def add(group: int, record: OpRecord) -> int:
        ops.append(record)
        label.append(group + 1)
        return len(ops) - 1

    def cost() -> int:
        return int(10 ** rng.uniform(7, 9))

    parameters, forward, reads = [], [], []
    for i in range(num_groups):
        size = int(10 ** rng.uniform(4, 7))
        parameters.append(
            add(i, OpRecord(f"w{i}", "parameter", resident_bytes={"parameter": size}, module=f"layer{i // width}"))
        )
    for i in range(num_groups):
        module = f"layer{i // width}"
        forward.append(add(i, OpRecord(f"f{i}", "mm", flops=cost(), module=module)))
        reads.append(sorted({int(j) for j in rng.integers(max(i - 3, 0), i, size=2)}) if i else [])
    backward = {}
    for i in reversed(range(num_groups)):
        module = f"layer{i // width}"
        backward[i] = add(i, OpRecord(f"b{i}", "mm", phase="backward", flops=cost(), module=module))
    updates = [
        add(i, OpRecord(f"u{i}", "adam", phase="update", bytes_accessed=10**6, module=f"layer{i // width}"))
        for i in range(num_groups)
    ]
    readers: dict[int, list[int]] = {i: [] for i in range(num_groups)}
    for i, sources in enumerate(reads):
        for j in sources:
            readers[j].append(i)
    tensors.append(TensorRecord(0, 10**5, [forward[0]]))
    for i in range(num_groups):
        size = int(10 ** rng.uniform(4, 7))
        resident = ops[parameters[i]].resident_bytes["parameter"]
        tensors.append(TensorRecord(parameters[i], resident, [forward[i], backward[i], updates[i]], resident=True))
        tensors.append(TensorRecord(forward[i], size, [*(forward[j] for j in readers[i]), backward[i]]))
        tensors.append(TensorRecord(backward[i], size, [updates[i], *(backward[j] for j in reads[i])]))
    graph = build(f"training{num_groups}-{seed}", ops, tensors)
    names = ["input", *(f"layer{i // width}/{i % width}" for i in range(num_groups))]
    families = ["input", *(f"layer{i // width}" for i in range(num_groups))]
    steps = [0, *(i % width for i in range(num_groups))]
    return graph, make_groups(np.array(label), names, families, steps)


def training_problem(
    num_groups: int,
    gpus: int,
    *,
    seed: int,
    cpu: bool = True,
    room: float | None = None,
    schedule: str = "priority",
) -> PlacementProblem:
    """A `training_graph` on a `cluster`.

    Args:
        num_groups: Groups besides the input's.
        gpus: Accelerators.
        seed: Of the graph.
        cpu: Whether there is a CPU.
        room: Memory of each device as a share of what one device would need; unlimited where None.
        schedule: The schedule.
    """
    graph, groups = training_graph(num_groups, seed=seed)
    problem = PlacementProblem(graph, groups, cluster(gpus, cpu=cpu), schedule)
    if room is None:
        return problem
    device = problem.num_devices - 1
    placement = np.where(problem.allowed[:, device], device, 0)
    need = int(problem.evaluate(placement[None]).peak_memory_bytes[0, device])
    size = int(need * room)
    return PlacementProblem(graph, groups, cluster(gpus, cpu=cpu, gpu_bytes=size, cpu_bytes=size), schedule)


def random_problem(num_ops: int, gpus: int, *, seed: int, cpu: bool = True) -> PlacementProblem:
    """A `graphs.synthetic.random_graph` with a group an op."""
    graph = random_graph(num_ops, seed=seed, locality=5)
    return PlacementProblem(graph, one_group_an_op(graph), cluster(gpus, cpu=cpu))


def expensive_cuts(
    num_ops: int,
    gpus: int,
    *,
    seed: int,
    room: float = 1.3,
    cpu: bool = True,
    cpu_bytes: int = 256 * 10**9,
    schedule: str = "priority",
) -> PlacementProblem:
    """Ops of a millisecond that one GPU cannot hold, and tensors that take 10 to 120 times as long to send.

    A placement that does not fit is far faster than any that does, and the host, 20 times slower, has room for all.

    Args:
        num_ops: All alike but for the bytes that they keep; each reads up to two of those shortly before it.
        gpus: Accelerators.
        seed: Of the graph.
        room: Memory of the GPUs together as a share of what the ops keep.
        cpu: Whether there is a host.
        cpu_bytes: Its memory.
        schedule: The schedule.
    """
    rng = np.random.default_rng(seed)
    kept = rng.integers(50, 150, num_ops) * 10**6
    ops = [OpRecord(f"op{i}", "mm", flops=10**9, resident_bytes={"constant": int(kept[i])}) for i in range(num_ops)]
    readers: dict[int, set[int]] = {}
    for i in range(1, num_ops):
        for j in rng.integers(max(i - 6, 0), i, size=int(rng.integers(0, 3))):
            readers.setdefault(int(j), set()).add(i)
    tensors = [TensorRecord(i, int(rng.choice([5_000, 20_000, 60_000])), sorted(readers[i])) for i in sorted(readers)]
    graph = build(f"expensive_cuts:ops={num_ops},seed={seed}", ops, tensors)
    gpu = DeviceSpec("cut_gpu", "gpu", int(kept.sum() * room / gpus), {"float32": 1e12}, 1e12)
    host = DeviceSpec("cut_host", "cpu", cpu_bytes, {"float32": 5e10}, 1e11)
    devices = [Device("cpu:0", host)] if cpu else []
    devices += [Device(f"gpu:{i}", gpu) for i in range(gpus)]
    links = tuple(Link(d.name, "switch", 1e12 if d.spec.kind == "cpu" else 5e5, 0.0) for d in devices)
    return PlacementProblem(
        graph, one_group_an_op(graph), Cluster(f"cuts{gpus}", tuple(devices), links, ("switch",)), schedule
    )


def all_placements(problem: PlacementProblem) -> np.ndarray:
    """Every placement that obeys `problem.allowed`."""
    choices = [np.flatnonzero(row) for row in problem.allowed]
    return np.stack([axis.ravel() for axis in np.meshgrid(*choices, indexing="ij")], axis=1)


def optimum_s(problem: PlacementProblem) -> float:
    """The best step time there is; infinite where nothing fits."""
    return float(problem.evaluate(all_placements(problem)).cost_s().min())
