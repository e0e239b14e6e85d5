"""Evaluations: of a run, of one network, of two, on other data; twice the same files; what is refused."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from small import CONF, SMALL, composed

from segdpo.files import DataError
from segdpo.inference.open import open_segmenter
from segdpo.models import EVALUATION, checked
from segdpo.models.weights import save_weights
from segdpo.recipes.config import build, plain, read_config
from segdpo.recipes.evaluate import Request, check_classes, evaluate_weights
from segdpo.recipes.measure import WITHOUT_DISTANCES
from segdpo.recipes.run import open_run, run_recipe

DISCS = "_target_: gold_sources.Discs\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    torch.set_num_threads(1)
    run_recipe(composed(*SMALL, "callbacks.panels=null", folder=folder))
    return folder / "run"


@pytest.fixture
def data(tmp_path):
    """Write a yaml of data as people have it in conf/data/."""

    def write(text, name="mine"):
        path = tmp_path / "conf" / "data" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    return write


def request(model, **options):
    return Request(model, CONF, **options)


def rows(folder):
    with open(folder / "images.csv", newline="") as file:
        return list(csv.DictReader(file))


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def predicted(path, image):
    with torch.no_grad():
        return open_segmenter(path)[0](torch.from_numpy(image)[None])[0, 0].numpy() > 0


def test_a_run_leaves_an_evaluation_that_agrees_with_numpy(run):
    config = composed(*SMALL, folder=run.parent)
    opened = open_run(config)
    pipeline = build(config.transforms)["eval"]
    found = {row["id"]: row for row in rows(run / "evaluation")}
    assert list(found) == sorted(found)
    assert len(found) == len(opened.splits.test) == 6
    for number in opened.splits.test:
        record = opened.source[int(number)]
        view = pipeline(record.image, record.gold[None], np.random.default_rng(0))
        gold = view.masks[0] == 1
        for name in ("policy", "reference"):
            mask = predicted(run / f"{name}.safetensors", view.image)
            both = (mask & gold).sum()
            expected = {
                "iou": both / (mask | gold).sum(),
                "dice": 2 * both / (mask.sum() + gold.sum()),
                "precision": both / max(1, mask.sum()),
                "recall": both / gold.sum(),
            }
            for metric, value in expected.items():
                assert float(found[record.id][f"{name}_{metric}"]) == pytest.approx(value, abs=1e-6)


def test_its_summary_says_what_the_runs_summary_says_and_more(run):
    summary = json.loads((run / "evaluation" / "summary.json").read_text())
    of_run = json.loads((run / "summary.json").read_text())
    for name in ("policy", "reference", "difference"):
        assert summary[name]["iou"] == of_run[name]["iou"]
    assert summary["metrics"] == list(WITHOUT_DISTANCES)
    changes = [float(row["policy_iou"]) - float(row["reference_iou"]) for row in rows(run / "evaluation")]
    assert summary["better"] == sum(change > 0 for change in changes)
    assert summary["worse"] == sum(change < 0 for change in changes)
    assert [change for _, change in summary["worst"]] == pytest.approx(sorted(c for c in changes if c < 0))
    assert sum(summary["calibration"]["policy"]["bins"]) == 6 * 32 * 32
    pictures = [path.name for path in (run / "evaluation" / "overlays").iterdir()]
    assert sum(name.startswith("better") for name in pictures) == min(6, summary["better"])
    assert sum(name.startswith("worse") for name in pictures) == min(6, summary["worse"])


def test_of_the_same_networks_it_is_what_the_run_wrote(run, tmp_path):
    evaluate_weights(request(run, metrics=WITHOUT_DISTANCES, out=tmp_path))
    assert (tmp_path / "images.csv").read_bytes() == (run / "evaluation" / "images.csv").read_bytes()
    assert (tmp_path / "classes.csv").read_bytes() == (run / "evaluation" / "classes.csv").read_bytes()


def test_it_says_that_the_policy_of_a_run_is_its_reference(run, tmp_path):
    """The run itself measured the policy that it trained, which is in another file."""
    kept = shutil.copytree(run, tmp_path / "kept")
    (kept / "trained_policy.safetensors").write_bytes((kept / "policy.safetensors").read_bytes())
    (kept / "policy.safetensors").write_bytes((kept / "reference.safetensors").read_bytes())
    before = contents(kept / "evaluation")
    report = evaluate_weights(request(kept, metrics=("iou",)))
    assert (report.folder, contents(kept / "evaluation")) == (kept / "evaluation_kept", before)
    (note,) = report.notes
    trained = f"segdpo evaluate {kept / 'trained_policy.safetensors'} --against {kept / 'reference.safetensors'} --out "
    assert trained in note
    asked = request(kept / "trained_policy.safetensors", against=kept / "reference.safetensors", out=tmp_path / "x")
    assert evaluate_weights(asked).notes == []


def test_twice_gives_the_same_files_and_old_pictures_go(run, tmp_path):
    asked = request(run, out=tmp_path / "same")
    evaluate_weights(asked)
    first = contents(tmp_path / "same")
    (tmp_path / "same" / "overlays" / "worse_9_of_long_ago.png").write_bytes(b"")
    (tmp_path / "same" / "overlays" / "mine.png").write_bytes(b"")
    evaluate_weights(asked)
    (tmp_path / "same" / "overlays" / "mine.png").unlink()
    assert contents(tmp_path / "same") == first
    assert {"hd95", "surface_dice"} < set(json.loads(first[Path("summary.json")])["metrics"])


def test_one_network_alone(run, tmp_path):
    report = evaluate_weights(request(run / "policy.safetensors", out=tmp_path, metrics=("iou", "recall"), split="val"))
    assert list(rows(tmp_path)[0]) == ["id", "policy_iou", "policy_recall"]
    assert not {"reference", "difference", "worst"} & set(report.summary)
    lowest = min(rows(tmp_path), key=lambda row: float(row["policy_iou"]))["id"]
    assert (tmp_path / "overlays" / f"lowest_1_{lowest}.png").exists()


def test_two_networks_are_compared_the_way_that_was_asked(run, tmp_path):
    there = evaluate_weights(request(run, out=tmp_path / "there", against=run / "reference.safetensors")).summary
    back = evaluate_weights(request(run / "reference.safetensors", out=tmp_path / "back", against=run)).summary
    assert back["policy"] == there["reference"]
    assert back["difference"]["iou"]["mean"] == -there["difference"]["iou"]["mean"]
    assert back["worse"] == there["better"]
    assert back["wilcoxon"]["iou"]["p"] == there["wilcoxon"]["iou"]["p"]


def test_other_data_and_options_of_the_runs_own(run, data, tmp_path):
    of_yaml = evaluate_weights(
        request(run, data=data(DISCS + "count: 3"), overrides=["data.count=5"], split="all", out=tmp_path / "a")
    )
    assert [row["id"] for row in rows(tmp_path / "a")] == [f"disc {number:02d}" for number in range(5)]
    assert of_yaml.summary["images"] == 5
    changed = evaluate_weights(
        request(run, overrides=["data.count=10", "datamodule.split.test=0.3"], out=tmp_path / "b")
    )
    assert changed.summary["images"] == 3
    anew = evaluate_weights(
        request(run, overrides=["data=shapes", "data.size=48", "data.count=7"], split="all", out=tmp_path)
    )
    assert anew.summary["images"] == 7


def test_images_without_gold_are_counted_and_a_split_without_any_is_refused(run, data, tmp_path):
    some = data(DISCS + "count: 4\nlacking: [1, 2]")
    assert evaluate_weights(request(run, data=some, split="all", out=tmp_path)).summary["without_gold"] == [
        "disc 01",
        "disc 02",
    ]
    none = data(DISCS + "count: 4\nlacking: [0, 1, 2, 3]")
    with pytest.raises(DataError, match=r"gold of the 4 images of --split all but none has any"):
        evaluate_weights(request(run, data=none, split="all", out=tmp_path))
    with pytest.raises(DataError, match=r"images in the split val but it has none"):
        evaluate_weights(request(run, overrides=["datamodule.split.val=0"], split="val", out=tmp_path))


def test_networks_and_data_of_other_classes(run, data, tmp_path):
    with pytest.raises(ValueError, match=r"the data's 4 classes \(background, body, nucleus, process\) but it has 2"):
        evaluate_weights(request(run, overrides=["data=shapes_multiclass"], out=tmp_path))
    swapped = data("_target_: gold_sources.Swapped\ncount: 4")
    with pytest.raises(ValueError, match=r"in the data's order \(object, background\)"):
        evaluate_weights(request(run, data=swapped, split="all", out=tmp_path))
    assert check_classes(run, ["background", "cell"], ["background", "object"]) == [
        f"{run}: the network's classes are background, cell, the data's background, object"
    ]


def test_one_image_has_no_interval_but_a_value(run, data, tmp_path):
    summary = evaluate_weights(request(run, data=data(DISCS + "count: 1"), split="all", out=tmp_path)).summary
    (row,) = rows(tmp_path)
    assert summary["policy"]["iou"]["mean"] == float(row["policy_iou"])
    assert np.isnan(summary["difference"]["iou"]["low"])
    assert summary["difference"]["iou"]["n"] == 1


def test_views_that_cut_are_measured_only_as_they_are(run, tmp_path):
    step = "{_target_: segdpo.data.albumentations.CenterCrop, height: 20, width: 20}"
    asked = request(run, overrides=[f"transforms.eval.steps.0={step}"], out=tmp_path)
    with pytest.raises(DataError, match=r"shapes-0-\d+: .*the whole image.*measured_at=view"):
        evaluate_weights(asked)
    report = evaluate_weights(replace(asked, overrides=[*asked.overrides, "measured_at=view"]))
    assert sum(report.summary["calibration"]["policy"]["bins"]) == 6 * 20 * 20
    assert report.said == ["as trained: through CenterCrop, measured at that size (measured_at=view)"]
    with pytest.raises(ValueError, match=r"measured_at to be one of image, view but got 'here'"):
        evaluate_weights(replace(asked, overrides=["measured_at=here"]))


def test_a_broken_network_is_no_network_that_finds_nothing(run, tmp_path):
    segmenter, description = open_segmenter(run)
    with torch.no_grad():
        next(segmenter.parameters()).fill_(float("nan"))
    config = {**description, "preparation": description["preparation"].stored()}
    save_weights(tmp_path / "broken.safetensors", segmenter, {"config": json.dumps(config)})
    with pytest.raises(ValueError, match=r"shapes-0-0.*: Expected finite logits"):
        evaluate_weights(
            request(
                tmp_path / "broken.safetensors", overrides=["data=shapes", "data.count=4"], split="all", out=tmp_path
            )
        )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"split": "val"}, "Expected --out FOLDER"),
        ({"overrides": ["data.cuont=3"]}, "The run has no data.cuont: data has .*count"),
        ({"overrides": ["loss=dpo"]}, "transforms, .*background.* but got 'loss=dpo'"),
        ({"overrides": ["transforms.size=64"]}, "write transforms=NAME transforms.size=64"),
        ({"overrides": ["data=shapes"], "data": "x.yaml"}, "both"),
        ({"window": 0}, "Expected window to be at least 1 but got 0"),
        ({"device": "abacus"}, "Expected --device to be a device .* such as cpu, but got 'abacus'"),
        ({"metrics": ("components",)}, "say which mask is better but components does not; add iou"),
    ],
    ids=str,
)
def test_mistakes_in_words(options, said, run, tmp_path):
    out = {} if "split" in options else {"out": tmp_path}
    with pytest.raises(ValueError, match=said):
        evaluate_weights(request(run, **options, **out))


def test_weights_alone_do_not_say_which_data(run, tmp_path):
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "policy.safetensors").write_bytes((run / "policy.safetensors").read_bytes())
    alone = tmp_path / "alone" / "policy.safetensors"
    with pytest.raises(ValueError, match="--data or data=…"):
        evaluate_weights(request(alone, out=tmp_path / "out"))
    asked = request(alone, overrides=["data=shapes", "data.count=6", "data.size=32"], split="all", out=tmp_path / "out")
    assert evaluate_weights(asked).summary["images"] == 6


SOURCE = "segdpo.data.Shapes"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (SOURCE, "os.system", r"config\.yaml: data asks to call 'os\.system'.*--trust os"),
        (SOURCE, "sympy.sympify", r"data asks to call 'sympy\.sympify'"),
        (SOURCE, "segdpo.files.write_atomically", r"data asks to call 'segdpo\.files\.write_atomically"),
        (SOURCE, "segdpo.inference.open_network", r"data asks to call"),
        ("segdpo.data.Pipeline", "torch.load", r"transforms\.eval asks to call 'torch\.load'"),
        ("segdpo.data.split_by_fraction", "timm.models.load_state_dict", r"datamodule\.split asks to call"),
        ("size: 32", "size: ${oc.create:{_target_:os.system}}", r"config\.yaml: .*data\.size holds \$"),
        ("threads: 1", "threads: ${oc.env:HOME}", r"config\.yaml: .*threads holds \$"),
        ("start: gold", "start: /etc/passwd", r"data\.masks\.start .*'/etc/passwd'"),
        ("keep: true", "_recursive_: false", r"data\._recursive_"),
        ("_target_: segdpo.data.split_by_fraction\n    _partial_: true", "a: b", r"split .*_target_.*'a'"),
        ("threads: 1", "threads: &a [1]\njobs: *a", r"config\.yaml.*alias"),
    ],
)
def test_a_strangers_configuration_calls_nothing(run, tmp_path, old, new, said):
    (tmp_path / "policy.safetensors").write_bytes((run / "policy.safetensors").read_bytes())
    config = (run / "config.yaml").read_text()
    assert old in config
    (tmp_path / "config.yaml").write_text(config.replace(old, new))
    with pytest.raises(ValueError, match=said):
        evaluate_weights(request(tmp_path, out=tmp_path / "out"))


def test_a_users_own_data_needs_its_package_trusted(run, tmp_path):
    (tmp_path / "policy.safetensors").write_bytes((run / "policy.safetensors").read_bytes())
    config = read_config(run / "config.yaml")
    config["data"] = {"_target_": "gold_sources.Discs", "count": 4}
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    with pytest.raises(ValueError, match="--trust gold_sources"):
        evaluate_weights(request(tmp_path, split="all", out=tmp_path / "out"))
    report = evaluate_weights(request(tmp_path, split="all", out=tmp_path / "out", trusted=["gold_sources"]))
    assert report.summary["images"] == 4


@pytest.mark.parametrize("name", [path.stem for path in (CONF / "data").glob("*.yaml")])
def test_the_data_of_our_yamls_needs_no_trust(name, tmp_path):
    paths = {"coco": "annotations", "folder": "root", "pack": "path", "plain": "root"}
    given = [f"data.{paths[name]}=/a/b"] if name in paths else []
    config = composed(f"data={name}", *given, folder=tmp_path)
    node = plain(config.data)
    assert checked(node, tmp_path, "data", table=EVALUATION)["_target_"] == node["_target_"]


@pytest.mark.parametrize("group", ["transforms", "datamodule/split"])
def test_the_transforms_and_splits_of_our_yamls_need_no_trust(group, tmp_path):
    for path in (CONF / group).glob("*.yaml"):
        config = composed(f"{group}={path.stem}", folder=tmp_path)
        node = plain(OmegaConf.select(config, "transforms.eval" if group == "transforms" else "datamodule.split"))
        checked(node, path, group, table=EVALUATION)
