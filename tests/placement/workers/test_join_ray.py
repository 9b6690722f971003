"""A Ray cluster that runs is joined: with a token, from within and by Ray's client."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
DRIVER = """
import sys
from placement.workers import Job, open_workers
with open_workers(sys.argv[1], packages=("tests",)) as workers:
    print(workers.count, sum(d.value for d in workers.run(
        [Job(str(x), "tests.placement.workers.jobs:double", {"x": x}) for x in range(20)])))
"""


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, str], int, int]]:
    """Environment of who may join a head with two cores, the head's port and that of Ray's client."""
    folder = tmp_path_factory.mktemp("r")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {"PYTHONPATH": str(ROOT), "RAY_AUTH_TOKEN": "a" * 64, "RAY_USAGE_STATS_ENABLED": "0"}
    port, client_port = _free_port(), _free_port()
    command = ["start", "--head", "--block", "--node-ip-address=127.0.0.1", "--include-dashboard=false", "--num-cpus=2"]
    command += [f"--port={port}", f"--ray-client-server-port={client_port}", f"--temp-dir={folder}"]
    started = subprocess.Popen(
        [str(Path(sys.executable).with_name("ray")), *command],
        env={**environment, "RAY_AUTH_MODE": "token"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 120
    for each in (port, client_port):
        while time.monotonic() < end:
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", each)) == 0:
                    break
            time.sleep(0.2)
    yield environment, port, client_port
    started.terminate()
    started.wait(60)


def _join(spec: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", DRIVER, spec], env=environment, capture_output=True, text=True, timeout=200, check=False
    )


def test_a_cluster_is_joined_from_within_and_from_outside(head: tuple[dict[str, str], int, int]) -> None:
    environment, port, client_port = head
    for spec, more in (
        ("ray:auto", {"RAY_ADDRESS": f"127.0.0.1:{port}"}),
        (f"ray://127.0.0.1:{client_port}", {}),
    ):
        done = _join(spec, environment | more)
        assert done.stdout.split() == ["2", "380"], done.stderr


def test_who_has_no_token_is_told_of_it(head: tuple[dict[str, str], int, int], tmp_path: Path) -> None:
    environment, port, _ = head
    environment = {key: value for key, value in environment.items() if key != "RAY_AUTH_TOKEN"} | {
        "HOME": str(tmp_path)
    }
    done = _join("ray:auto", environment | {"RAY_ADDRESS": f"127.0.0.1:{port}"})
    assert done.returncode != 0
    assert f"workers: Ray at '127.0.0.1:{port}' does not answer" in done.stderr
    assert "RAY_AUTH_TOKEN" in done.stderr


def test_a_ray_of_our_own_leaves_others_alone(head: tuple[dict[str, str], int, int]) -> None:
    environment, port, _ = head
    done = _join("ray:1", environment | {"RAY_ADDRESS": f"127.0.0.1:{port}"})
    assert done.stdout.split() == ["1", "380"], done.stderr
