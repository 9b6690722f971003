"""Workers do each job once in what comes back, whatever becomes of them; Ray's do what local ones do."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import numpy as np
import pytest

from graphs.errors import InputError
from placement.workers import Job, Workers, open_workers
from placement.workers.local import LocalWorkers
from tests import forked

JOBS = "tests.placement.workers.jobs"


@pytest.fixture(scope="module", params=["2", "ray:2"])
def workers(request: pytest.FixtureRequest) -> Iterator[Workers]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "127.0.0.1:9")  # nobody's: a Ray of our own asks no other
        with open_workers(request.param, packages=("tests",)) as made:
            yield made


def test_each_job_is_done_once(workers: Workers) -> None:
    jobs = [Job(str(x), f"{JOBS}:double", {"x": x}) for x in range(50)]
    done = list(workers.run(iter(jobs)))
    assert sorted(d.key for d in done) == sorted(job.key for job in jobs)
    assert {d.key: d.result() for d in done} == {str(x): 2 * x for x in range(50)}
    assert list(workers.run([])) == []


def test_what_is_shared_is_read_by_all(workers: Workers) -> None:
    numbers = np.arange(1000)
    shared = workers.share(numbers.tobytes(), f"{JOBS}:decode")
    assert shared.digest == hashlib.sha256(numbers.tobytes()).hexdigest()
    other = workers.share(np.ones(3, dtype=np.int64).tobytes(), f"{JOBS}:decode")
    jobs = [Job(f"{i}{s.digest}", f"{JOBS}:total", {"plus": i}, s) for i in range(5) for s in (shared, other)]
    found = {d.key: d.value for d in workers.run(jobs)}
    assert found == {f"{i}{s.digest}": i + n for i in range(5) for s, n in ((shared, numbers.sum()), (other, 3))}


def test_what_is_shared_is_decoded_once_a_worker(workers: Workers, tmp_path: Path) -> None:
    shared = workers.share(str(tmp_path).encode(), f"{JOBS}:decode_and_count")
    assert [d.value for d in workers.run([Job(str(i), f"{JOBS}:total", {"plus": 5}, shared) for i in range(20)])] == [
        5
    ] * 20
    made = [path.name.split("-")[1] for path in tmp_path.iterdir()]
    assert len(made) == len(set(made)) <= workers.count


@pytest.mark.parametrize("size", [0, 100, 10**5, 10**7])
def test_what_is_long_comes_back_whole(workers: Workers, size: int) -> None:
    content = np.random.default_rng(size).bytes(size)
    jobs = [Job(str(i), f"{JOBS}:turn_round", {"content": content}) for i in range(4)]
    assert [d.value for d in workers.run(jobs)] == [content[::-1]] * 4


@pytest.mark.parametrize("how", ["kill", pytest.param("exit", marks=pytest.mark.slow), "hang"])
def test_a_job_that_loses_its_worker_is_begun_again(workers: Workers, tmp_path: Path, how: str) -> None:
    jobs = [
        Job(str(x), f"{JOBS}:die_at_first", {"folder": str(tmp_path), "x": x, "how": how if x % 2 else "not"}, None, 5)
        for x in (1, 3)
    ]
    jobs += [Job(str(x), f"{JOBS}:double", {"x": x}) for x in range(4, 9)]
    done = {d.key: d for d in workers.run(jobs)}
    assert {key: d.value for key, d in done.items()} == {str(x): 2 * x for x in (1, 3, 4, 5, 6, 7, 8)}
    assert {key for key, d in done.items() if d.attempts > 1} == {"1", "3"}


def test_a_job_that_ends_every_worker_is_told_of(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("local", "ray_workers"):
        monkeypatch.setattr(f"placement.workers.{module}.MOST_ATTEMPTS", 2)
    with pytest.raises(InputError, match="job 'bad' lost its worker 2 times"):
        list(workers.run([Job("bad", f"{JOBS}:always_die")]))
    assert [d.value for d in workers.run([Job("x", f"{JOBS}:double", {"x": 2})])] == [4]


def test_errors_of_the_input_come_back_and_others_are_raised(workers: Workers) -> None:
    (done,) = workers.run([Job("x", f"{JOBS}:refuse", {"x": 7})])
    assert str(done.error) == "7 is no good; give another"
    with pytest.raises(InputError, match="7 is no good"):
        done.result()
    with pytest.raises(ZeroDivisionError):
        list(workers.run([Job("x", f"{JOBS}:slip")]))


@pytest.mark.parametrize(
    "name",
    ["os:getcwd", "tests_of_another:double", "", "placement.workers.base:importlib", f"{JOBS}:Path", "tests:x.y"],
)
def test_a_job_names_functions_of_packages_that_were_given(workers: Workers, name: str) -> None:
    with pytest.raises((ValueError, AttributeError)):
        list(workers.run([Job("x", name)]))


def test_a_job_names_functions_of_this_project_alone_where_no_package_is_given() -> None:
    with open_workers(1) as workers, pytest.raises(ValueError, match="not a function of this project"):
        list(workers.run([Job("x", f"{JOBS}:double", {"x": 1})]))


def test_what_is_not_waited_for_is_ended(workers: Workers) -> None:
    running = workers.run([Job("quick", f"{JOBS}:double", {"x": 1}), Job("slow", f"{JOBS}:wait_s", {"seconds": 500})])
    assert next(running).key == "quick"
    running.close()  # type: ignore[attr-defined]
    began = time.monotonic()
    assert len(list(workers.run([Job(str(x), f"{JOBS}:double", {"x": x}) for x in range(4)]))) == 4
    assert time.monotonic() - began < 120


def test_a_worker_that_is_killed_while_it_answers_takes_none_with_it(tmp_path: Path) -> None:
    """Half of an answer is on its way: none of the others is held up by it, and no half is taken for a whole."""
    with open_workers(2, packages=("tests",)) as workers:
        jobs = [Job(str(x), f"{JOBS}:die_answering", {"folder": str(tmp_path), "x": x}) for x in range(6)]
        done = {d.key: d for d in workers.run(jobs)}
    assert {key: len(d.value.content) for key, d in done.items()} == {str(x): 10**6 for x in range(6)}
    assert {d.attempts for d in done.values()} == {2}


def test_a_worker_that_is_stopped_is_noticed(tmp_path: Path) -> None:
    with open_workers(2, packages=("tests",)) as workers:
        list(workers.run([Job(str(x), f"{JOBS}:double", {"x": x}) for x in range(2)]))
        jobs = [Job("stops", f"{JOBS}:stop_at_first", {"folder": str(tmp_path)}, None, 3)]
        jobs += [Job(str(x), f"{JOBS}:double", {"x": x}) for x in range(5)]
        done = {d.key: d.value for d in workers.run(jobs)}
    assert done == {"stops": "went on", **{str(x): 2 * x for x in range(5)}}


def test_workers_that_are_lost_while_they_have_nothing_to_do_are_begun_again() -> None:
    with open_workers(2, packages=("tests",)) as workers:
        assert isinstance(workers, LocalWorkers)
        jobs = [Job(str(x), f"{JOBS}:double", {"x": x}) for x in range(6)]
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
            assert sorted(d.value for d in workers.run(jobs)) == [0, 2, 4, 6, 8, 10]
            begun = [process for process in workers._processes if process.pid is not None]
            assert begun
            for process in begun:
                assert process.pid is not None
                os.kill(process.pid, number)
            while any(process._process is not None and process._process.is_alive() for process in begun):
                time.sleep(0.01)


def test_workers_do_one_list_of_jobs_at_a_time() -> None:
    with open_workers(1, packages=("tests",)) as workers:
        running = workers.run([Job(str(x), f"{JOBS}:double", {"x": x}) for x in range(3)])
        next(running)
        with pytest.raises(RuntimeError, match="do jobs already"):
            next(workers.run([Job("x", f"{JOBS}:double", {"x": 1})]))
        assert sorted(d.value for d in running) == [2, 4]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="cores cannot be given to a process here")
def test_local_workers_share_the_cores() -> None:
    ours = sorted(os.sched_getaffinity(0))
    with open_workers(2, packages=("tests",)) as workers:
        jobs = [Job(str(i), f"{JOBS}:cores") for i in range(6)]
        found = {tuple(d.value) for d in workers.run(jobs)}
    assert found <= {tuple(ours[0::2]), tuple(ours[1::2]) or tuple(ours[:1])}
    with open_workers(1, packages=("tests",)) as workers:
        assert [d.value for d in workers.run(jobs[:1])] == [ours]


def test_no_local_worker_outlives_a_parent_that_is_killed(tmp_path: Path) -> None:
    code = f"""
if __name__ == "__main__":
    from placement.workers import Job, open_workers
    workers = open_workers(2, packages=("tests",))
    for done in workers.run([Job(str(x), "{JOBS}:begin", {{"folder": r"{tmp_path}", "x": x}}) for x in range(8)]):
        pass
    print("ready", flush=True)
    list(workers.run([Job("x", "{JOBS}:wait_s", {{"seconds": 300}})] * 2))
"""
    script = tmp_path / "parent.py"
    script.write_text(code)
    root = Path(__file__).resolve().parents[3]
    parent = forked.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(root)}
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    pids = {int(path.name.split("-")[1]) for path in tmp_path.glob("*-*-*")}
    parent.kill()
    parent.wait()
    end = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < end:
        time.sleep(0.05)
    assert pids
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize("spec", ["", "0", "-1", "many", "ray:0", "ray://nowhere", "local:", "99999", "ray:x"])
def test_what_is_no_name_of_workers(spec: str) -> None:
    with pytest.raises(InputError, match=r"^workers '.*' (is none of|asks for)"):
        open_workers(spec)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphs.extras.is_installed", lambda module: module != "ray")
    with pytest.raises(InputError, match=r"workers 'ray' needs Ray, which is not installed: pip install .*\[ray\]"):
        open_workers("ray")


def test_local_workers_import_no_ray() -> None:
    code = "import sys, placement.workers.local, placement.api; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="what listens is not told here")
def test_a_ray_of_our_own_listens_on_this_machine_alone(workers: Workers) -> None:
    if type(workers).__name__ == "RayWorkers":
        found = _listening()
        assert any(process.startswith(("raylet", "gcs_server")) for process, _ in found)
        assert not [(process, address) for process, address in found if not ip_address(address).is_loopback]


def _listening() -> list[tuple[str, str]]:
    """Name and address of each process of ours that listens: descendants of this one; some end meanwhile."""
    import psutil

    us, found = psutil.Process(), []
    for process in (us, *us.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [
                (process.name(), socket.laddr.ip.removeprefix("::ffff:"))
                for socket in process.net_connections("inet")
                if socket.status == psutil.CONN_LISTEN
            ]
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux alone")
def test_workers_are_forked_from_what_has_loaded_the_program() -> None:
    """They have its modules, what was to be loaded first, all their cores, and none of the template's variables."""
    code = f"""
if __name__ == "__main__":
    import os, signal
    import graphs.synthetic
    from placement.workers import Job, open_workers
    with open_workers(1, packages=("tests",)) as workers:
        workers.load_first("graphs.extras:check_ray", "nobody")
        os.environ["SAID_LATER"] = "1"
        for _ in range(3):
            for done in workers.run([Job("x", "{JOBS}:loaded")]):
                print(done.value)
            os.kill(workers._processes[0].pid, signal.SIGKILL)
"""
    root = Path(__file__).resolve().parents[3]
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str((True, len(os.sched_getaffinity(0)), str(root), "1", None))] * 3
