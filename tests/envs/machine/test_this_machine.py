"""This machine: what is found in recorded trees and answers, the cluster of recorded figures, and the cache."""

from __future__ import annotations

import itertools
import os
import sys
import types
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

import envs.machine.this
from envs.clusters.device_specs import DEVICE_SPECS
from envs.clusters.file import cluster_to_yaml, parse_cluster
from envs.machine import finding
from envs.machine.child import Answer
from envs.machine.finding import find_gpus, find_host, usable
from envs.machine.found import Found, FoundGpu, FoundLink
from envs.machine.measured import CopyFigures, DeviceFigures, Measured
from envs.machine.parts import MOST_CORES, parts_of
from envs.machine.this import this_machine
from envs.machine.to_cluster import make_machine_cluster
from graphs.errors import InputError

DATA = Path(__file__).parent / "data"
CORE = DeviceFigures({"float32": 60e9, "float64": 30e9}, 8e9, 3e-6, {"convolution": 30e9, "attention": 90e9})
GPU = DeviceFigures({"float32": 30e12, "bfloat16": 120e12}, 800e9, 4e-6)


def measured(found: Found, *, gpu: DeviceFigures | None = GPU, peers: float = 5e9) -> Measured:
    """Figures of every device, and of copies: 10 GB/s from a host to a GPU, 11 back, `peers` between GPUs."""
    parts = parts_of(found)
    figures = {part.name: CORE for part in parts if part.card < 0}
    figures |= {part.name: gpu for part in parts if part.card >= 0 and gpu is not None}
    rates = {(False, False): 4e9, (False, True): 10e9, (True, False): 11e9, (True, True): peers}
    copies = [
        CopyFigures(a.name, b.name, rates[a.card >= 0, b.card >= 0], 20e-6)
        for a, b in itertools.permutations(parts, 2)
        if gpu is not None or (a.card < 0 and b.card < 0)
    ]
    return Measured(figures, tuple(copies), when="2026-01-02", torch="2.13.0")


def host(cores: int, **more: object) -> Found:
    return Found(cpu_name="AMD EPYC 7763 64-Core Processor", cores=cores, usable_cpus=tuple(range(cores)), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cores", "names"),
    [
        (1, ["cpu:0"]),
        (2, ["cpu:0", "cpu:1"]),
        (MOST_CORES, [f"cpu:{i}" for i in range(MOST_CORES)]),
        (16, [f"cpu:{i}-{i + 1}" for i in range(0, 16, 2)]),
        (20, ["cpu:0-1", "cpu:2-4", "cpu:5-6", "cpu:7-9", "cpu:10-11", "cpu:12-14", "cpu:15-16", "cpu:17-19"]),
    ],
)
def test_without_accelerators_cores_are_the_devices(cores: int, names: list[str]) -> None:
    found = host(cores, memory_bytes=64 * 10**9, free_bytes=40 * 10**9)
    made = make_machine_cluster(found, DEVICE_SPECS, name="m", measured=measured(found))
    assert list(made.cluster.device_names) == names
    assert made.cluster.all_memory_bytes == 40e9
    assert set(made.cluster.memory_bytes.tolist()) == {40 * 10**9}
    spec = made.cluster.devices[0].spec
    # Attention was the quickest class, so it sets the peak of which products reach two thirds.
    assert spec.rate_flops_per_s("float32") * spec.efficiency["product"] == pytest.approx(60e9)
    assert spec.rate_flops_per_s("float64") * spec.efficiency["product"] == pytest.approx(30e9)
    assert spec.rate_flops_per_s("float32") * spec.efficiency["convolution"] == pytest.approx(30e9)
    assert spec.rate_flops_per_s("float32") * spec.efficiency["attention"] == pytest.approx(90e9)
    assert "2026-01-02" in spec.source
    if cores > 1:
        assert made.cluster.routes.bytes_per_s[0, 1] == 4e9
        assert made.cluster.routes.latency_s[0, 1] == pytest.approx(20e-6)
    again = parse_cluster(cluster_to_yaml(made.cluster, DEVICE_SPECS), DEVICE_SPECS)
    assert again.sha256 == made.cluster.sha256


def test_devices_of_one_model_are_alike_whatever_others_did_meanwhile() -> None:
    found = host(4)
    figures = measured(found)
    slow = DeviceFigures({"float32": 20e9, "float64": 40e9}, 2e9, 9e-6)
    made = make_machine_cluster(
        found,
        DEVICE_SPECS,
        name="m",
        measured=msgspec.structs.replace(figures, devices={**figures.devices, "cpu:2": slow}),
    )
    assert len({device.spec.name for device in made.cluster.devices}) == 1
    assert all(device.spec == made.cluster.devices[0].spec for device in made.cluster.devices)
    assert made.cluster.devices[2].spec.memory_bytes_per_s == 8e9


def test_a_busy_machine_is_said() -> None:
    found = host(4)
    for load, said in ((0.5, False), (3.0, True)):
        figures = msgspec.structs.replace(measured(found), load=load)
        made = make_machine_cluster(found, DEVICE_SPECS, name="m", measured=figures)
        assert any("was busy" in note for note in made.notes) == said


def with_gpus(**more: object) -> Found:
    card = FoundGpu(name="NVIDIA GeForce RTX 3090", memory_bytes=24 * 10**9, node=0)
    near = (("", "PHB"), ("PHB", ""))
    return host(16, gpus=(card, card), paths=near, memory_bytes=64 * 10**9, **more)


def test_measured_copies_are_the_links() -> None:
    found = with_gpus()
    cluster = make_machine_cluster(found, DEVICE_SPECS, name="m", measured=measured(found)).cluster
    figures = {(link.a, link.b): (link.bytes_per_s, link.back[0], link.latency_s) for link in cluster.links}
    assert figures["cpu:0", "gpu:0"] == (10e9, 11e9, 20e-6)
    assert figures["gpu:0", "gpu:1"] == (5e9, 5e9, 20e-6)
    assert cluster.devices[1].spec.rate_flops_per_s("bfloat16") == 120e12
    assert cluster.devices[1].spec.tile == 32


def test_measured_nvlinks_and_switches_take_their_figures() -> None:
    found = with_gpus(links=(FoundLink(0, 1, "nvlink", 4),))
    cluster = make_machine_cluster(found, DEVICE_SPECS, name="m", measured=measured(found, peers=200e9)).cluster
    assert [(link.bytes_per_s, link.latency_s) for link in cluster.links if link.a == "gpu:0"] == [(200e9, 20e-6)]
    switched = with_gpus(links=(FoundLink(0, -1, "nvlink", 18), FoundLink(1, -1, "nvlink", 18)))
    cluster = make_machine_cluster(switched, DEVICE_SPECS, name="m", measured=measured(switched, peers=200e9)).cluster
    assert cluster.switches == ("nvswitch:0",)
    assert cluster.routes.bytes_per_s[1, 2] == 200e9
    assert cluster.routes.latency_s[1, 2] == pytest.approx(20e-6)


def test_what_was_not_measured_is_the_catalogues_and_said() -> None:
    found = with_gpus()
    made = make_machine_cluster(found, DEVICE_SPECS, name="m", measured=measured(found, gpu=None))
    assert made.cluster.devices[1].spec.name == "rtx_3090"
    assert any(note.startswith("gpu:0 was not measured") for note in made.notes)
    unnamed = msgspec.structs.replace(found, gpus=(FoundGpu(name="Sixty"), FoundGpu(name="Sixty")))
    with pytest.raises(InputError, match="GPU 0 is called 'Sixty'"):
        make_machine_cluster(unnamed, DEVICE_SPECS, name="m", measured=measured(unnamed, gpu=None))
    own = make_machine_cluster(unnamed, DEVICE_SPECS, name="m", measured=measured(unnamed)).cluster
    assert own.devices[1].spec.name == "sixty_measured"


def test_apples_gpu_shares_the_hosts_memory() -> None:
    card = FoundGpu(name="Apple M2 Max", memory_bytes=24 * 10**9, shares_memory=True)
    found = Found(cpu_name="Apple M2 Max", cores=12, gpus=(card,), memory_bytes=32 * 10**9)
    cluster = make_machine_cluster(found, DEVICE_SPECS, name="m", measured=measured(found)).cluster
    assert cluster.memory_bytes.tolist() == [int(0.95 * 32e9), int(0.95 * 24e9)]
    assert cluster.all_memory_bytes == int(0.95 * 32e9)


def write(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")


def test_the_host_is_read_from_proc_and_sys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpus = {
        f"sys/devices/system/cpu/cpu{i}/topology/{name}": value
        for i in range(8)
        for name, value in (("thread_siblings_list", f"{i % 4},{i % 4 + 4}"), ("physical_package_id", str(i % 4 // 2)))
    }
    nodes = {
        f"sys/devices/system/node/node{k}/{name}": value
        for k in range(2)
        for name, value in (("cpulist", f"{2 * k}-{2 * k + 1}"), ("meminfo", f"Node {k} MemTotal:  {1000 + k} kB"))
    }
    write(
        tmp_path,
        cpus | nodes | {"proc/cpuinfo": "processor : 0\nmodel name\t: Some CPU", "sys/fs/cgroup/memory.max": "5000000"},
    )
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 2, 5, 6, 7}, raising=False)
    found = find_host(tmp_path)
    assert (found.cpu_name, found.sockets, found.cores, found.usable_cpus) == ("Some CPU", 2, 3, (1, 2, 7))
    assert found.memory_bytes == found.free_bytes == 5_000_000
    assert [(node.number, node.cpus, node.memory_bytes) for node in found.nodes] == [
        (0, (0, 1), 1_024_000),
        (1, (2, 3), 1_025_024),
    ]
    empty = find_host(tmp_path / "nothing")
    assert empty.usable_cpus == (1, 2, 5, 6, 7)
    assert (empty.nodes, empty.sockets) == ((), 1)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "250000 100000"}, 3),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "1600000 100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ({"cpu.max": "100000 0"}, 8),
        ({"cpu.max": "?"}, 8),
        ({}, 8),
    ],
)
def test_a_container_has_its_share_of_the_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: int
) -> None:
    write(tmp_path, {f"sys/fs/cgroup/{name}": content for name, content in files.items()})
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    found = find_host(tmp_path)
    assert (found.cores, found.usable_cpus) == (cores, tuple(range(cores)))


def test_what_a_container_uses_of_its_memory_is_not_free(tmp_path: Path) -> None:
    group = {"memory.max": "5000000", "memory.current": "3000000", "memory.stat": "anon 1\ninactive_file 1000000"}
    write(tmp_path, {f"sys/fs/cgroup/{name}": content for name, content in group.items()})
    assert (find_host(tmp_path).memory_bytes, find_host(tmp_path).free_bytes) == (5_000_000, 3_000_000)


def answers(**said: bytes | None) -> finding.Run:
    """A machine on which ``nvidia-smi -q -x`` and ``nvidia-smi topo -m`` print this."""

    def run(arguments: Sequence[str]) -> bytes | None:
        return said["xml"] if "-x" in arguments else said["topo"]

    return run


def test_gpus_are_as_the_driver_says() -> None:
    xml, topo = (DATA / "rtx4090_and_p40.xml").read_bytes(), (DATA / "rtx4090_and_p40.txt").read_bytes()
    both = find_gpus(answers(xml=xml, topo=topo))
    assert [gpu.name for gpu in both.gpus] == ["NVIDIA GeForce RTX 4090", "Tesla P40"]
    assert both.path(0, 1) == "PHB"
    assert both.said_by == ("nvidia-smi -q -x", "nvidia-smi topo -m")
    assert find_gpus(answers(xml=xml, topo=None)).path(0, 1) == ""
    assert find_gpus(answers(xml=xml, topo=b"Failed to initialize NVML: Unknown Error\n")).gpus == both.gpus[:0] + (
        find_gpus(answers(xml=xml, topo=None)).gpus
    )
    assert find_gpus(answers(xml=None, topo=None)) == Found()


def pretended_nvml(links: dict[int, list[str | None]]) -> types.ModuleType:
    """NVML of two GPUs, and where each NVLink of theirs leads; None is a link that is not there."""
    nvml = types.ModuleType("pynvml")
    buses = ["00000000:01:00.0", "00000000:02:00.0"]

    class NVMLError(Exception):
        pass

    def state(handle: int, link: int) -> int:
        if link >= len(links[handle]):
            raise NVMLError
        return int(links[handle][link] is not None)

    def lanes(handle: int) -> int:
        raise NVMLError

    made: dict[str, object] = {
        "NVMLError": NVMLError,
        "NVML_NVLINK_MAX_LINKS": 18,
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda i: i,
        "nvmlDeviceGetName": lambda handle: b"NVIDIA RTX A6000" if handle else "NVIDIA RTX A6000",
        "nvmlDeviceGetMemoryInfo": lambda handle: types.SimpleNamespace(total=48 * 10**9, free=47 * 10**9),
        "nvmlDeviceGetPciInfo": lambda handle: types.SimpleNamespace(busId=buses[handle].encode()),
        "nvmlDeviceGetMaxPcieLinkGeneration": lambda handle: 4,
        "nvmlDeviceGetCurrPcieLinkWidth": lanes,
        "nvmlDeviceGetTopologyCommonAncestor": lambda a, b: 40,
        "nvmlDeviceGetNvLinkState": state,
        "nvmlDeviceGetNvLinkRemotePciInfo": lambda handle, link: types.SimpleNamespace(busId=links[handle][link]),
    }
    for name, value in made.items():
        setattr(nvml, name, value)
    return nvml


@pytest.mark.parametrize(
    ("links", "found"),
    [
        (
            {0: ["00000000:02:00.0"] * 4, 1: ["00000000:01:00.0"] * 4},
            (FoundLink(0, 1, "nvlink", 4),),
        ),
        (
            {0: ["00000000:09:00.0", None, "00000000:0A:00.0"], 1: ["00000000:09:00.0"]},
            (FoundLink(0, -1, "nvlink", 2), FoundLink(1, -1, "nvlink", 1)),
        ),
        ({0: [], 1: []}, ()),
    ],
)
def test_without_nvidia_smi_nvml_is_asked(
    links: dict[int, list[str | None]], found: tuple[FoundLink, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", pretended_nvml(links))
    monkeypatch.setattr(finding, "is_installed", lambda module: module == "pynvml")
    machine = find_gpus(answers(xml=None, topo=None))
    assert machine.links == found
    assert machine.path(0, 1) == "NODE"
    assert [(gpu.name, gpu.pcie_generation, gpu.pcie_lanes, gpu.bus) for gpu in machine.gpus] == [
        ("NVIDIA RTX A6000", 4, None, "0:01:00.0"),
        ("NVIDIA RTX A6000", 4, None, "0:02:00.0"),
    ]


def test_only_gpus_that_pytorch_sees_are_devices() -> None:
    cards = [FoundGpu(name=f"card {i}", memory_bytes=10**9, bus=f"0:0{i}:00.0", cpus=(i,)) for i in range(3)]
    links = (FoundLink(0, 2, "nvlink", 2), FoundLink(0, 1, "nvlink", 1))
    paths = (("", "PIX", "NODE"), ("PIX", "", "SYS"), ("NODE", "SYS", ""))
    found = Found(gpus=tuple(cards), links=links, paths=paths, shared=((0, 1),))
    seen = [FoundGpu(name="as torch says", free_bytes=5, bus=cards[i].bus) for i in (2, 0)]
    left = usable(found, seen)
    assert [(gpu.name, gpu.cpus, gpu.free_bytes) for gpu in left.gpus] == [("card 2", (2,), 5), ("card 0", (0,), 5)]
    assert left.links == (FoundLink(1, 0, "nvlink", 2),)
    assert left.paths == (("", "NODE"), ("NODE", ""))
    assert usable(found, []) == found
    other = usable(found, [FoundGpu(name="AMD", memory_bytes=3)])
    assert ([gpu.name for gpu in other.gpus], other.links, other.paths) == (["AMD"], (), ())
    divided = Found(gpus=(FoundGpu(name="A100", memory_bytes=80, bus="0:01:00.0", is_divided=True),))
    part = FoundGpu(name="A100 MIG 1g.10gb", memory_bytes=10, bus="0:01:00.0")
    assert usable(divided, [part]).gpus == (part,)


@pytest.fixture
def measurements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Found]:
    """A machine whose measuring is recorded: what was asked for, one for each time that it was measured."""
    asked: list[Found] = []

    def measure(found: Found) -> Answer:
        asked.append(found)
        return Answer((), found, measured(found, gpu=None))

    monkeypatch.setattr("envs.machine.this._measure", measure)
    monkeypatch.setattr("envs.machine.this.find_gpus", Found)
    monkeypatch.setattr("envs.machine.this.user_cache_path", lambda app: tmp_path / app)
    return asked


def test_a_machine_is_measured_once(measurements: list[Found], monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    first = this_machine(on_measure=lambda: told.append(1))
    again = this_machine(on_measure=lambda: told.append(2))
    assert (len(measurements), told) == (1, [1])
    assert first.cluster.sha256 == again.cluster.sha256
    assert first.cluster.name == "this_machine"
    this_machine(again=True)
    assert len(measurements) == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    this_machine()
    assert len(measurements) == 3


@pytest.mark.slow
def test_the_machine_at_hand_is_measured_in_less_than_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envs.machine.this.user_cache_path", lambda app: tmp_path / app)
    made = this_machine()
    assert made.measured is not None
    assert made.measured.took_s < 60
    assert set(made.cluster.device_names) <= {part.name for part in parts_of(made.found)}
    assert this_machine().cluster.sha256 == made.cluster.sha256


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"version": 0}', b"\xff"])
def test_a_damaged_cache_is_measured_again(measurements: list[Found], tmp_path: Path, damage: bytes) -> None:
    this_machine()
    (kept,) = tmp_path.glob("device-placement/machines/*.json")
    kept.write_bytes(damage)
    this_machine()
    assert len(measurements) == 2


def test_where_nothing_can_be_kept_the_answer_is_the_same(
    measurements: list[Found], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("envs.machine.this.user_cache_path", lambda app: tmp_path / "file" / app)
    assert this_machine().cluster.device_names == this_machine().cluster.device_names
    assert len(measurements) == 2


def test_a_process_that_fails_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envs.machine.this.sys, "executable", "/bin/false")
    with pytest.raises(InputError, match=r"measuring this machine failed \(no reason\); describe it in a cluster file"):
        envs.machine.this._measure(Found())
    monkeypatch.setattr(envs.machine.this.sys, "executable", "/bin/true")
    with pytest.raises(InputError, match="gave no figures"):
        envs.machine.this._measure(Found())
