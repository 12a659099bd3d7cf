"""One stage, many ways to run it, the same bytes."""

import os
import socket
import threading
from functools import partial
from pathlib import Path

import pytest

from puna.files import MANIFEST, read_json, to_path
from puna.stages.stage import Executor, Unfinished, plan_shards
from tests.corpus.test_clean import contents
from tests.stages import works

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def inputs(tmp_path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    for number in range(7):
        (folder / f"{number}.txt").write_text(f"words of {number}\n" * (number + 1), encoding="utf-8")
    return folder


@pytest.fixture
def plain(inputs, tmp_path) -> dict[str, object]:
    works.copy_with(inputs, tmp_path / "plain", Executor(workers=1))
    return contents(tmp_path / "plain")


# ---- parts of an array job


def test_the_parts_of_an_array_job_make_what_one_run_makes(inputs, plain, tmp_path):
    out = tmp_path / "out"
    for part in ("3/3", "1/3"):
        with pytest.raises(Unfinished, match=rf"part {part} of the stage copies is done; \d of 7"):
            works.copy_with(inputs, out, Executor(workers=1, part=part))
        assert not (out / MANIFEST).exists()
    works.copy_with(inputs, out, Executor(workers=1, part="2/3"))
    assert contents(out) == plain
    works.copy_with(inputs, out, Executor(workers=1, part="1/3"))  # run again when all are done
    assert contents(out) == plain


def test_a_part_can_wait_for_the_others(inputs, plain, tmp_path):
    out = tmp_path / "out"
    ends: dict[str, object] = {}

    def run(part: str) -> None:
        ends[part] = works.copy_with(inputs, out, Executor(workers=1, part=part, wait=60))

    threads = [threading.Thread(target=run, args=(part,)) for part in ("1/2", "2/2")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ends["1/2"] == ends["2/2"] == read_json(out / MANIFEST)
    assert contents(out) == plain


def test_a_part_takes_nothing_from_the_temporary_files_of_another(inputs, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    others, own = out / ".00001.txt.4711.partial", out / ".00000.txt.4711.partial"
    others.write_bytes(b"being written")
    own.write_bytes(b"left by a kill")
    with pytest.raises(Unfinished):
        works.copy_with(inputs, out, Executor(workers=1, part="1/2"))
    assert others.exists() and not own.exists()


@pytest.mark.parametrize("part", ["0/3", "4/3", "3", "a/b", "1/0", ""])
def test_a_part_that_cannot_be_is_refused(part):
    with pytest.raises(ValueError, match="expected I/N with I from 1 to N"):
        Executor(part=part).validate()


# ---- what may have changed


def test_an_input_that_changed_between_a_kill_and_a_resume_is_refused(inputs, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(Unfinished):
        works.copy_with(inputs, out, Executor(workers=1, part="1/2"))
    changed = inputs / "0.txt"
    held = changed.read_bytes()
    changed.write_bytes(held.swapcase())  # the same size
    os.utime(changed, (2**31, 2**31))
    with pytest.raises(ValueError, match=r"0\.txt has changed since its shard was made"):
        works.copy_with(inputs, out, Executor(workers=1, part="1/2"))
    changed.write_bytes(held)  # only touched
    os.utime(changed, (2**31, 2**31))
    works.copy_with(inputs, out, Executor(workers=1, part="2/2"))


def test_files_may_lie_in_object_storage(inputs, plain, tmp_path):
    remote = to_path("memory://bucket/raw")
    for path in inputs.iterdir():
        (remote / path.name).write_bytes(path.read_bytes())
    out = to_path("memory://bucket/out")
    works.copy_with(remote, out, Executor(workers=1))
    for name, held in plain.items():
        if name.endswith(".txt"):
            assert (out / name).read_bytes() == held
    assert read_json(out / MANIFEST)["fingerprint"] == plain[MANIFEST]["fingerprint"]


# ---- Ray


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    # Two nodes on this machine; the driver joins through its address as it would from elsewhere.
    environment = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        nodes.add_node(num_cpus=1)
        yield nodes.address
        ray.shutdown()
        nodes.shutdown()


def test_a_ray_cluster_of_two_nodes_makes_the_same_bytes(cluster, inputs, plain, tmp_path):
    works.copy_with(inputs, tmp_path / "out", Executor(engine="ray", address=cluster))
    assert contents(tmp_path / "out") == plain


def test_a_shard_whose_ray_worker_is_lost_is_done_again(cluster, inputs, plain, tmp_path):
    shards = plan_shards(sorted(inputs.iterdir()), shard_bytes=1)
    work = partial(works.copy_and_lose_a_worker_once, tmp_path / "marker")
    executor = Executor(engine="ray", address=cluster)
    executor.stage("copies", work, shards, tmp_path / "out", {"speed": "quick"})
    assert (tmp_path / "marker").exists()
    assert contents(tmp_path / "out") == plain


def test_an_error_in_a_ray_task_is_the_works_own(cluster, inputs, tmp_path):
    executor = Executor(engine="ray", address=cluster)
    missing = plan_shards([inputs / "0.txt"])
    (inputs / "0.txt").rename(inputs / "gone")
    with pytest.raises(OSError, match=r"0\.txt"):
        executor.stage("copies", works.copy, missing, tmp_path / "out", {})


def test_a_cluster_that_does_not_answer_is_an_error_at_once(inputs, tmp_path):
    pytest.importorskip("ray")
    with socket.socket() as free:  # a port where nobody listens
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ValueError, match=f"the Ray cluster at {address} does not answer .*ray start --head"):
        works.copy_with(inputs, tmp_path / "out", Executor(engine="ray", address=address))
