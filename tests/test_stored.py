"""What commit f7ff399 wrote opens and means the same: weights, runs, data sets, a journal, names in yamls.

tests/stored/expected.json holds logits and records as the code of that commit computed them. The networks of the
runs are one convolution; the data set is three images of `data=shapes` with mined preferences: pack, folder, COCO.
"""

import json
import lzma
import re
import shutil
from contextlib import nullcontext
from hashlib import sha256
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from segdpo.cli import collect, evaluate, report
from segdpo.data import open_source
from segdpo.inference import open_segmenter
from segdpo.models import add_lora, check_targets, load_reward_model, read_header
from segdpo.preferences import Journal

STORED = Path(__file__).parent / "stored"
EXPECTED = json.loads((STORED / "expected.json").read_text())
TARGETS = (STORED / "targets.txt").read_text().split()


@pytest.mark.parametrize("name", EXPECTED["logits"])
def test_weights(name):
    segmenter, description = open_segmenter(STORED / name)
    assert description["classes"] == ["background", "object"]
    with torch.no_grad():
        logits = segmenter(torch.linspace(-1, 1, 3 * 6 * 7).reshape(1, 3, 6, 7))
    np.testing.assert_allclose(logits.flatten()[:4], EXPECTED["logits"][name], atol=1e-5)


def test_an_adapter():
    """On the reference, the adapter gives the logits of the run's policy; its header has the options of add_lora."""
    segmenter, _ = open_segmenter(STORED / "lora" / "reference.safetensors")
    path = STORED / "lora" / "adapter.safetensors"
    adapted = add_lora(segmenter, **json.loads(read_header(path)["adapter"]))
    assert adapted.load_state_dict(load_file(path), strict=False).unexpected_keys == []
    with torch.no_grad():
        logits = adapted.eval()(torch.linspace(-1, 1, 3 * 6 * 7).reshape(1, 3, 6, 7))
    np.testing.assert_allclose(logits.flatten()[:4], EXPECTED["logits"]["lora/policy.safetensors"], atol=1e-5)


def test_a_reward_model(tmp_path):
    """All its weights are 0 but the last bias, .25. Compressed, since a ResNet of zeros is 45 MB."""
    path = tmp_path / "reward_model.safetensors"
    path.write_bytes(lzma.decompress((STORED / "reward_model.safetensors.xz").read_bytes()))
    model = load_reward_model(path, classes=2)
    with torch.no_grad():
        rewards = model(
            torch.rand(1, 3, 32, 32), torch.randint(0, 2, (2, 32, 32), dtype=torch.uint8), torch.tensor([0, 0])
        )
    assert rewards.tolist() == [0.25, 0.25]


@pytest.mark.parametrize("name", ["mined.pack", "folder", "coco/coco.json"])
def test_a_data_set(name):
    source = open_source(STORED / name, channels=None)
    assert tuple(source.classes)[:2] == ("background", "object")
    records = [source[index] for index in range(len(source))]
    assert [record.id for record in records] == list(EXPECTED["records"])
    for record in records:
        expected = EXPECTED["records"][record.id]
        pixels = b"".join(np.ascontiguousarray(part).tobytes() for part in (record.image, record.masks, record.gold))
        assert sha256(pixels).hexdigest() == expected["sha256"]
        assert list(record.mask_names) == expected["mask_names"]
        assert [[pair.chosen, pair.rejected] for pair in record.pairs] == expected["pairs"]


def test_a_mining_journal(tmp_path):
    path = shutil.copy(STORED / "mined.pack.mining.jsonl", tmp_path)
    settings = json.loads(Path(path).read_text().splitlines()[0])["settings"]
    journal = Journal(Path(path), settings)
    assert journal.finished
    summary = journal.summary()
    assert (summary.mined, summary.selected, summary.masks, summary.pairs) == (3, 3, 11, 3)


def test_a_run_is_evaluated_with_its_own_data(tmp_path):
    """The means are those that the run itself wrote."""
    folder = shutil.copytree(STORED / "run", tmp_path / "run")
    assert evaluate([str(folder), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    found, before = (
        json.loads((place / "summary.json").read_text()) for place in (tmp_path / "out", folder / "evaluation")
    )
    assert found["images"] == before["images"]
    assert found["policy"]["iou"]["mean"] == pytest.approx(before["policy"]["iou"]["mean"], abs=1e-6)
    assert found["reference"]["iou"]["mean"] == pytest.approx(before["reference"]["iou"]["mean"], abs=1e-6)


def test_a_run_and_a_sweep_are_reported(tmp_path):
    for name in ("run", "lora", "sweep"):
        assert report([str(STORED / name), "--out", str(tmp_path / f"{name}.html")]) == 0
    mean = json.loads((STORED / "run/summary.json").read_text())["policy"]["iou"]["mean"]
    assert f"{mean:.3f}".lstrip("0") in (tmp_path / "run.html").read_text()


def test_a_sweep_is_collected(tmp_path):
    assert collect([str(STORED / "sweep"), "--out", str(tmp_path)]) == 0
    rows = [line.split(" | ")[:4] for line in (tmp_path / "sweep.md").read_text().splitlines()[2:4]]
    assert rows == [["| `sft`", "0.158", "0.331", "+0.173"], ["| `dpo`", "0.158", "0.078", "-0.080"]]


@pytest.mark.parametrize("target", TARGETS)
def test_a_name_in_a_yaml(target):
    """Every `_target_` of our configuration at that commit is found where it is now."""
    moved = target.count(".") > 2
    with pytest.warns(FutureWarning, match=re.escape(target)) if moved else nullcontext():
        now = check_targets({"_target_": target})["_target_"]
    found = import_module("segdpo")
    for part in now.split(".")[1:]:
        found = getattr(found, part) if hasattr(found, part) else import_module(f"{found.__name__}.{part}")
    assert callable(found)
