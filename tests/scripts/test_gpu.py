"""`scripts/gpu.py` without a GPU: bytes counted by hand, tables of recorded rows, parts that fail or hang."""

import json
import sys
import warnings
from pathlib import Path

import gpu
import pytest
import torch
from bench.gpu import bandwidth, resume, steps, suite, tiles
from bench.gpu.bandwidth import FORMS, Form, Size
from bench.gpu.clock import in_turns
from bench.gpu.steps import BATCHES, Repeated, batches_of
from bench.row import Row, at_least, at_most
from bench.scale import choose_scale
from bench.waits import noted_waits

from segdpo.models import Segmenter

CPU = torch.device("cpu")
SCALE = choose_scale("cpu", quick=True, rounds=2)
TRAINER, INDEX, MASKS, ANCHORED = FORMS


@pytest.mark.parametrize(
    ("channels", "form", "per_pixel"),
    [
        # Two masks twice: 4. The logits of two classes in a tenth of the pixels: 2 · 2 · .1. The gradient: 2 · C.
        (19, MASKS, 4 + 0.4 + 38),
        (19, TRAINER, 4 + 0.4 + 38),
        # Instead of the masks an index of ten bytes at a tenth of the pixels, twice.
        (19, INDEX, 2 + 0.4 + 38),
        (1, MASKS, 4 + 0.2 + 2),
        # All logits twice.
        (19, ANCHORED, 4 + 2 * 38 + 38),
        (1, ANCHORED, 4 + 2 * 2 + 2),
    ],
)
def test_the_least_bytes_by_hand(channels, form, per_pixel):
    assert bandwidth.least_bytes(Size(2, channels, (10, 50)), form, differing=0.1) == round(1000 * per_pixel)
    assert bandwidth.least_bytes(Size(1, channels, (10, 10, 10)), form, differing=0.1) == round(1000 * per_pixel)


def test_the_sizes_are_those_that_the_targets_are_about():
    assert [str(size) for size in bandwidth.SIZES] == [
        "C = 19, bfloat16, 16 × 1024²",
        "C = 1, bfloat16, 16 × 1024²",
        "C = 4, bfloat16, 2 × 128³",
        "C = 150, bfloat16, 16 × 1024²",
    ]


def test_a_copy_reads_half_of_the_bytes_and_writes_the_other_half():
    parts = bandwidth.halves({"few": 100, "many": 2 * bandwidth.MOST_COPIED + 8}, torch.device("meta"))
    assert [len(one) for one in parts["few"]] == [50, 50]
    assert [len(one) for one in parts["many"]] == [bandwidth.MOST_COPIED] * 2


@pytest.mark.untraced
def test_a_volume_is_measured_and_compared_with_plain_pytorch(monkeypatch):
    compared = []
    # Compiled, it takes seconds.
    monkeypatch.setattr(bandwidth.torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(bandwidth, "assert_same", lambda *sides: compared.append(sides))
    found = list(bandwidth.rows_of(Size(1, 4, (8, 8, 8), at_least(0.8), at_least(8)), SCALE))
    assert len(compared) == len(FORMS)
    assert [row.id for row in found] == ["H1", "H2", "H3"] * 4
    assert [row.target is not None for row in found] == [True, True, False] * 3 + [False] * 3
    assert all(row.sides["ours"] for row in found)


def test_what_does_not_fit_into_memory_is_said(monkeypatch):
    def too_large():
        raise torch.OutOfMemoryError

    fit, missing = bandwidth.those_that_fit({"fair": too_large, "ours": lambda: None})
    assert list(fit) == ["ours"]
    samples = {"floor": [1.0, 2.0], "as": [2.0, 4.0], "compiled": [8.0, 4.0]}
    form = Form("as", anchored=False)
    share, fair, compiled = bandwidth.rows_of_form(Size(1, 1, (1000, 1000), at_least(0.4)), form, samples, missing, 0.5)
    assert (share.ratios, share.met) == ([0.5, 0.5], True)
    assert "moves 4.13 GB/s; Python takes 0.5 ms" in share.note  # 6.2 MB in 1.5 ms
    assert fair.cells()[6:] == ("not measured", "", "")
    assert "too little memory" in fair.note
    assert compiled.ratios == [4.0, 1.0]


def test_sides_take_turns():
    calls = []
    found = in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2, CPU)
    assert "".join(calls) == "abab" + "ab" + "ba"
    assert [len(samples) for samples in found.values()] == [2, 2]


def test_batches_have_the_same_images():
    supervised, pairs = batches_of(SCALE, seed=0)
    assert torch.equal(supervised.image, pairs.image)
    assert torch.equal(supervised.target, pairs.chosen)
    assert pairs.index is not None
    assert [id(batch) for batch in Repeated([supervised, pairs], 3)] == [id(supervised), id(pairs), id(supervised)]
    assert BATCHES > 1


@pytest.mark.untraced
def test_steps_are_timed_and_the_first_ones_fill_the_cache(tmp_path):
    setting = steps.make_setting(SCALE, tmp_path)
    cached = steps.RATIOS[0][1]
    assert steps.waits_row(setting, cached, "here").note.endswith("not counted, since there is no GPU.")
    assert steps.train(setting, cached, steps.Stopwatch(SCALE)).milliseconds > 0
    assert steps.train(setting, steps.SUPERVISED, steps.Stopwatch(SCALE)).milliseconds > 0


@pytest.mark.untraced
def test_a_resumed_training_is_compared_with_one_that_was_not_stopped(tmp_path):
    network = Segmenter(torch.nn.Conv2d(3, 5, 3, padding=1), classes=5)
    training = resume.Training(SCALE, network, tmp_path)
    whole = training.run(checkpoints=tmp_path)
    assert len(whole) == 2 + 2 * 3  # weight and bias; of each the step and two moments
    assert resume.differing(whole, training.run(ckpt_path=tmp_path / f"step={resume.HALF}.ckpt")) == 0
    assert not torch.equal(whole[0], network.state_dict()["network.weight"])


def test_bits_are_compared():
    one = [torch.ones(2), torch.zeros(3)]
    assert resume.differing(one, [torch.ones(2), torch.zeros(3)]) == 0
    assert resume.differing(one, [torch.ones(2), torch.tensor([0.0, 0.0, 1e-45])]) == 1
    assert resume.differing(one, one[:1]) == 2


def test_candidates_of_tiles_leave_out_those_of_the_code():
    for job in tiles.JOBS:
        candidates = tiles.candidates_of(job)
        assert len(set(candidates)) == len(candidates) > 3
        assert tiles.TILES not in candidates
    assert tiles.title(tiles.TILES) == "as in the code"
    seen = []
    tiles.using(candidates[0], lambda: seen.append(tiles.triton_launch.TILES))
    assert (seen, tiles.triton_launch.TILES) == ([candidates[0]], tiles.TILES)


REPORT = """<testsuites><testsuite><testcase name="a"/><testcase name="b"><failure/></testcase>
<testcase name="c"><skipped/></testcase><testcase name="d"/></testsuite></testsuites>"""


def test_a_skipped_test_counts_as_failed():
    row = suite.row_of(suite.outcome_of(REPORT))
    assert row.what.endswith("3 ran")
    assert (row.ratios, row.met, row.note) == ([2.0], False, "b, c (skipped)")
    assert suite.row_of(suite.outcome_of("<testsuites/>")).failed == "no test ran"


PASSED = Row("X1", "tests", "", {"ours": [0.0]}, ("ours",), at_most(0))
SLOW = Row("T1", "step", "ms", {"ours": [3.0, 3.0], "fair baseline": [2.0, 2.0]}, target=at_most(1.02), note="why")


def test_tables_are_made_of_recorded_rows():
    found = {"tests": [gpu.stored(PASSED)], "training": [gpu.stored(SLOW)]}
    found = json.loads(json.dumps(found))
    lines = gpu.tables({"device": "NVIDIA X", "torch": "2.9"}, found).splitlines()
    assert lines[0] == "NVIDIA X; torch 2.9."
    assert "1 of 2 targets are met." in lines
    assert "| X1 | tests |  |  |  | 0 | 0 | ≤ 0 | met |" in lines
    assert "| T1 | step |  | 2 ms |  | 3 ms | 1.5 (1.5–1.5) | ≤ 1.02 | not met |" in lines
    assert "- T1: why" in lines
    assert gpu.status(found) == 0  # a speed that misses its target is no failure
    assert gpu.status({"tests": [gpu.stored(Row("X2", "waits", "", {"ours": [1]}, ("ours",), at_most(0)))]}) == 1
    assert gpu.status({"tests": [gpu.stored(Row("L1", "loss", failed="an error"))]}) == 1


@pytest.fixture
def part(monkeypatch, tmp_path):
    """Return a function that collects a part whose process runs some code, with the path of its rows as `path`."""

    def collect(code, seconds=60, packages=(), dry=True):
        script = tmp_path / "part.py"
        script.write_text(f"import sys, time\nfrom pathlib import Path\npath = Path(sys.argv[4])\n{code}")
        monkeypatch.setattr(gpu, "__file__", str(script))
        made = gpu.Part("A title", "module", seconds, 1, packages)
        return gpu.collect("tests", made, tmp_path / "rows.jsonl", dry)

    return collect


def test_what_was_measured_before_an_error_is_kept(part):
    line = json.dumps(gpu.stored(PASSED))
    kept, failed = part(f"path.write_text({line!r} + chr(10))\nraise RuntimeError('no kernel')")
    assert kept["cells"] == list(PASSED.cells())
    assert "status 1" in failed["failed"]
    assert "no kernel" in failed["failed"]


def test_a_part_that_hangs_is_stopped(part):
    [failed] = part("time.sleep(60)", seconds=0.5, dry=False)
    assert failed["failed"] == "stopped after 0.5 s"


def test_a_package_that_is_not_installed_is_named(part):
    [failed] = part("", packages=("torch", "no_such_package"))
    assert failed["failed"] == "not installed: no_such_package"
    assert gpu.status({"tests": [failed]}) == 1


def test_a_machine_without_cuda_and_unknown_parts_are_refused(monkeypatch, capsys, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'AssertionError: torch finds none' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(SystemExit, match="machine with CUDA but AssertionError: torch finds none; use --dry"):
        gpu.main(["--only", "tests", "--json", str(tmp_path / "gpu.json")])
    with pytest.raises(SystemExit):
        gpu.main(["--only", "all"])
    assert "tests,bandwidth,training,resume,benchmark but got all" in capsys.readouterr().err


def test_the_parts_take_less_than_eight_minutes():
    assert sum(part.seconds for part in gpu.PARTS.values()) < 480
    for part in [*gpu.PARTS.values(), gpu.TUNE]:
        assert (Path(gpu.__file__).parent / "bench" / "gpu" / f"{part.module}.py").exists()


def test_a_part_writes_its_rows(monkeypatch, tmp_path):
    monkeypatch.setattr(suite, "rows", lambda scale, folder: iter([PASSED, SLOW]))
    assert gpu.main(["--part", "tests", "--rows", str(tmp_path / "rows"), "--dry"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()]
    assert [row["cells"] for row in rows] == [list(PASSED.cells()), list(SLOW.cells())]


def test_a_wait_is_noted_and_the_warning_of_the_mode_is_none():
    with noted_waits() as found:
        warnings.warn("Synchronization debug mode is a prototype feature; not all synchronizing", stacklevel=1)
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
    [place] = found
    assert place.startswith("test_gpu.py:")
