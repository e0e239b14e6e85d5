"""segdpo mine engine=ray: the bytes of the local engine, whatever dies."""

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import logged_mining
import pytest
from hydra import compose, initialize_config_dir
from rich.console import Console
from trained import save_run

from segdpo.data.formats.pack import PackDataset
from segdpo.preferences.ray_cluster import on_ray
from segdpo.recipes.mine import mine_to_disk

ROOT = Path(__file__).parents[2]
COUNT, SHARD = 140, 64
LOGGED = [
    "data._target_=logged_mining.Opened",
    f"data.count={COUNT}",
    "data.size=32",
    "~candidates@data.masks",
    "candidates=function",
    "candidates.function.path=logged_mining.masks",
    "questions=all_pairs",
    "questions.min_gap=0.05",
]
pytestmark = [pytest.mark.untraced, pytest.mark.timeout(900)]


def mine(*words):
    with initialize_config_dir(str(ROOT / "conf"), version_base=None):
        config = compose("mine", list(words))
    return mine_to_disk(config, Console(quiet=True))


def on(cluster):
    return ["engine=ray", f"engine.init.address={cluster.address}", "engine.records=2"]


def content(out):
    files = [*out.iterdir(), out.with_name(f"{out.name}.mining.jsonl")]
    return {path.name.replace(out.name, "out"): path.read_bytes() for path in files}


def started(folder, *words):
    said = (folder / "said.txt").open("a")
    return subprocess.Popen([sys.executable, ROOT / "scripts/mine.py", *words], cwd=folder, stdout=said, stderr=said)


def wait_for_lines(journal, count, process):
    while not journal.exists() or journal.read_bytes().count(b"\n") < count:
        assert process.poll() is None, (journal.parent / "said.txt").read_text()[-4000:]
        time.sleep(0.01)


def logged(folder):
    return [line.split() for line in (folder / logged_mining.LOG).read_text().splitlines()]


def test_a_command_and_a_node_are_killed_and_nothing_is_lost_or_doubled(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine("out=straight", *LOGGED)
    expected = content(Path("straight"))
    assert len(logged(tmp_path)) == COUNT + 1
    work = tmp_path / "work"
    work.mkdir()
    words = ["out=mined", *LOGGED, *on(cluster)]
    journal = work / "mined.mining.jsonl"
    first = started(work, *words)
    wait_for_lines(journal, 100, first)
    first.send_signal(signal.SIGKILL)
    first.wait()
    lines = [json.loads(line) for line in journal.read_bytes().splitlines()[1:] if line.endswith(b"}")]
    skipped = sum(line["reason"] != "" for line in lines)
    done = skipped + (len(lines) - skipped) // SHARD * SHARD  # what is in no shard yet is mined again
    before = len(logged(work))
    again = started(work, *words)
    wait_for_lines(journal, 120, again)
    lost = next(node for node in cluster.worker_nodes)
    seen = logged(work)[before:]
    cluster.remove_node(lost, allow_graceful=False)
    assert again.wait() == 0, (work / "said.txt").read_text()[-4000:]
    cluster.second()

    assert content(work / "mined") == expected
    pack = PackDataset(work / "mined")
    assert [pack.describe(number).id for number in range(len(pack))] == sorted({record.id for record in pack})
    # Both nodes mined, each process opened the data once, and only what was under way was mined again.
    opened = Counter(process for what, process, *_ in logged(work) if what == "open")
    assert set(opened.values()) == {1}
    mined_by = Counter(node for what, _, node, _ in seen if what == "mine")
    assert mined_by[lost.node_id] > 2
    assert len(mined_by) == 2
    assert COUNT - done <= sum(what == "mine" for what, *_ in logged(work)[before:]) <= COUNT - done + 8


@pytest.mark.parametrize("candidates", ["own_candidates", "corruptions"])
def test_the_bytes_are_those_of_the_local_engine(cluster, tmp_path, candidates):
    save_run(tmp_path, ("background", "object"))
    words = ["data.count=12", f"candidates={candidates}", f"model.weights={tmp_path}", "model.trusted=[trained]"]
    mine(f"out={tmp_path / 'local'}", *words)
    mine(f"out={tmp_path / 'ray'}", *words, *on(cluster))
    assert content(tmp_path / "local") == content(tmp_path / "ray")
    # An engine is no setting of a mining: either resumes, and finds it finished.
    assert repr(mine(f"out={tmp_path / 'ray'}", *words)) == repr(mine(f"out={tmp_path / 'local'}", *words))


def results(cluster, function, numbers, **options):
    init = {"address": cluster.address, "log_to_driver": False}
    return list(on_ray(function, numbers, init=init, **options))


def test_results_come_in_order_however_long_each_takes(cluster):
    def slow(number):
        time.sleep(0.2 if number == 3 else 0)
        return number

    assert results(cluster, slow, range(100, 0, -1), records=3) == list(range(100, 0, -1))


def test_errors_are_those_of_the_local_engine(cluster):
    def wrong(number):
        raise ValueError(f"Expected min_gap of at least 0 but got {number}.")

    with pytest.raises(ValueError, match=r"^Expected min_gap of at least 0 but got 7\.$"):
        results(cluster, wrong, [7])
    with pytest.raises(ValueError, match=r"2 CPUs and 0 GPUs but the 2 of this cluster have .*'CPU': 1\.0"):
        results(cluster, wrong, [7], num_cpus=2)


def test_a_record_that_kills_its_process_is_no_endless_loop(cluster):
    def deadly(number):
        import os

        os._exit(1)

    with pytest.raises(ChildProcessError, match="Expected Ray to mine the records but it gave up"):
        results(cluster, deadly, [7], max_retries=1)
