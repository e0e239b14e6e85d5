"""Mutated files of every kind, opened by scripts/fuzz.py in processes with limited memory."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECURITY = ("code", "outside", "wrong", "crash", "memory", "read outside")


def fuzz(*words):
    """A process of its own: workers are forked before anything has threads."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "scripts/fuzz.py"), "--workers", "2", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def table(text):
    """{kind: {column: count}} of the printed table."""
    head, _, *rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {row[0]: dict(zip(head[1:], map(int, row[1:]), strict=True)) for row in rows}


@pytest.mark.untraced
def test_mutated_files_run_no_code_and_write_nowhere_else():
    done = fuzz("--cases", "10", "--memory", "2048")
    counts = table(done.stdout)
    assert {name: counts["all"][name] for name in SECURITY} == dict.fromkeys(SECURITY, 0), done.stdout + done.stderr
    assert len(counts) > 25
    assert counts["shard"]["files"] == 10
    assert counts["all"]["clean error"] > counts["all"]["files"] / 2


@pytest.mark.untraced
def test_a_case_can_be_run_again():
    first, second = (fuzz("--case", "manifest.jsonl:7", "--seed", "3") for _ in range(2))
    strip = [re.sub(r"/\S*segdpo-fuzz-\w+", "", done.stdout) for done in (first, second)]
    assert strip[0] == strip[1]
    assert strip[0].startswith("manifest.jsonl:7: ")


@pytest.mark.untraced
def test_the_hook_sees_code_and_writing(tmp_path):
    code = f"""
import os, sys
from pathlib import Path
from fuzzing.place import Place
from fuzzing.watch import Watch
place = Place(Path({str(tmp_path)!r}) / "w")
place.make()
watch = Watch(place)
sys.addaudithook(watch)
watch.on = True
(place.out / "fine").write_text("")
(place.folder / "fine").exists()
exec("segdpo_fuzz_canary = 1")
exec("fine = 1")
os.system("true")
(place.root / "secret.png").read_bytes()
(place.folder / ".." / "x").write_text("")
os.rename(place.out / "fine", place.root / "y")
watch.on = False
print([outcome for outcome, _ in watch.seen], len(place.snapshot()))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "scripts"), str(ROOT)])}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "['code', 'code', 'read outside', 'outside', 'outside']" in done.stdout, done.stderr
