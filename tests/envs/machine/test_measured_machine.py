"""Measuring itself, on the cores of the machine that runs the tests, with less of everything."""

from __future__ import annotations

import pytest
import torch

from envs.machine import measure
from envs.machine.finding import usable_cores
from envs.machine.found import Found
from envs.machine.parts import parts_of


def test_cores_and_copies_between_them_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_MOST_SIZE", {"cpu": 256})
    monkeypatch.setattr(measure, "_COPY_BYTES", {"cpu": 2**20})
    monkeypatch.setattr(measure, "_PAIR_BYTES", 2**20)
    monkeypatch.setattr(measure, "_TRYING_S", 0.0)
    threads = torch.get_num_threads()
    cores = usable_cores()[:2]
    parts = parts_of(Found(cores=len(cores), usable_cpus=cores))
    try:
        devices, copies = measure.measure(parts)
    finally:
        torch.set_num_threads(threads)
    assert list(devices) == [part.name for part in parts]
    for figures in devices.values():
        assert set(figures.flops_per_s) == {"float32", "float64", "bfloat16", "float16"}
        assert set(figures.class_flops_per_s) == {"convolution", "attention"}
        assert 1e6 < figures.flops_per_s["float32"] < 1e13
        assert 1e6 < figures.memory_bytes_per_s < 1e13
        assert 1e-8 < figures.launch_overhead_s < 1e-1
    assert {(copy.a, copy.b) for copy in copies} == {(a.name, b.name) for a in parts for b in parts if a != b}
    for copy in copies:
        assert 1e6 < copy.bytes_per_s < 1e13
        assert 1e-7 < copy.latency_s < 10


def test_a_failure_on_one_core_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(device: torch.device) -> float:
        raise RuntimeError("no memory is left")

    monkeypatch.setattr(measure, "_MOST_SIZE", {"cpu": 256})
    monkeypatch.setattr(measure, "_convolution", fail)
    parts = parts_of(Found(cores=2, usable_cpus=usable_cores()[:1] * 2))
    with pytest.raises(RuntimeError, match="no memory is left"):
        measure.measure(parts)
