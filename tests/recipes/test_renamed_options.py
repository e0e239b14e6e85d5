"""Options under their names of an earlier version: on command lines, and in the config.yaml of a finished run."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf
from small import CONF, ROOT, SMALL, composed
from warm import Warm

from segdpo.recipes.config import plain, read_config
from segdpo.recipes.run import differences, run_recipe
from segdpo.renamed import RENAMED_OPTIONS, current_config, current_words

STORED = ROOT / "tests" / "stored"
WORDS = {
    "pairs=tta": "candidates=tta",
    "+pairs=tta": "+candidates=tta",
    "pairs.temperature=2": "candidates.temperature=2",
    "++pairs.count=3": "++candidates.count=3",
    "~pairs.styles.merged": "~candidates.styles.merged",
    "pairs@reward_test.other=existing": "candidates@reward_test.other=existing",
    "+pairs@pairs.sources.own=existing": "+candidates@candidates.sources.own=existing",
    "pairs@pairs.sources.own:pairs.sources.mine=tta": "candidates@candidates.sources.own:candidates.sources.mine=tta",
    "pairs=given": "questions=answered",
    "rule=best_worst,all_pairs": "questions=best_worst,all_pairs",
    "rule.min_gap=.05": "questions.min_gap=.05",
    "start=cheap_masks": "reference_training=noisy_masks",
    "start=few_masks,cheap_masks": "reference_training=few_masks,noisy_masks",
    "start=choice(cheap_masks,few_masks)": "reference_training=choice(noisy_masks,few_masks)",
    "start.optimizer.lr=0.1": "reference_training.optimizer.lr=0.1",
    "optimizer.lr=${start.optimizer.lr}": "optimizer.lr=${reference_training.optimizer.lr}",
    "ckpt_path=last": "resume=last",
    "ckpt_path=a/ckpt_path/last.ckpt": "resume=a/ckpt_path/last.ckpt",
    "cell=dpo,sft": "experiment/variant=dpo,sft",
    "~cell": "~experiment/variant",
    "experiment=worth_cheap_masks": "experiment=worth_noisy_masks",
    "table=shapes": "experiment/table=shapes",
    "callbacks=[progress,last,how_to_go_on]": "callbacks=[progress,last,resume_hint]",
    "callbacks.how_to_go_on=null": "callbacks.resume_hint=null",
    "pairs.predict.model.path=a.pt": "model.weights=a.pt",
    "pairs.sources.tta.predict.model.path=a.pt": "model.weights=a.pt",
    "pairs.predict.device=cuda": "device=cuda",
    "pairs.device=cuda": "device=cuda",
    "pairs.predicts.early.model.path=a.pt": "candidates.weights.early=a.pt",
    "selection.acquisition.predict.model.path=a.pt": "model.weights=a.pt",
    "predictor.model.path=outputs/mine": "model.weights=outputs/mine",
    "predictor.device=cuda": "device=cuda",
    "predictor=unet": "model@model.network=unet",
    "predictor=fpn_dropout": "model@model.network=fpn",
    "predictor.model.model.encoder_name=resnet34": "model.network.encoder_name=resnet34",
    "candidates.networks.late.model.path=a.ckpt": "candidates.weights.late=a.ckpt",
    "pairs@data.mask_source=corruptions": "candidates@data.candidates=corruptions",
    "rule@data.rule=all_pairs": "questions@data.questions=all_pairs",
    "data.rule.min_gap=.1": "data.questions.min_gap=.1",
}
SAME = ["-m", "--cfg", "job", "--package", "pairs", "loss=dpo", "pairs_per_image=2", "hydra.run.dir=pairs=given"]
SAME += ["candidates.model.path=a.pt", "candidates.predict=3", "candidates.device=cuda"]
SAME += ["reward_test.other.start=crowd", "candidates.start=gold", "datamodule.items.pairs_per_image=3"]


@pytest.mark.parametrize(("old", "new"), WORDS.items())
def test_a_word_is_replaced_with_a_warning(old, new, caplog):
    assert current_words(["-m", old, "seed=0"]) in (["-m", new, "seed=0"], ["-m", "seed=0", new])
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert old in record.getMessage()
    assert new in record.getMessage()


def test_other_words_stay_without_a_warning(caplog):
    assert current_words(SAME) == SAME
    assert current_words(list(WORDS.values())[:3]) == list(WORDS.values())[:3]
    assert not caplog.records


def test_answers_of_the_data_leave_no_other_questions():
    assert current_words(["pairs=given", "rule=all_pairs", "seed=1"]) == ["seed=1", "questions=answered"]
    assert current_words(["rule.min_gap=.1", "pairs=given"]) == ["questions=answered"]
    with pytest.raises(ValueError, match="pairs=given,tta"):
        current_words(["-m", "pairs=given,tta"])


@pytest.mark.parametrize(
    "word",
    [
        "ranking=true",
        "+ranking=false",
        "predictor.model.prefix=network.",
        "pairs.predict.model.prefix=network.",
        "predictor.model.model.classes=4",
    ],
)
def test_an_option_without_effect_is_left_out(word, caplog):
    assert current_words([word, "out=a"]) == ["out=a"]
    assert word in caplog.text


def test_every_new_name_is_there():
    there = {str(path.relative_to(CONF)) for path in CONF.rglob("*") if path.is_dir()} | set(composed().keys())
    assert set(RENAMED_OPTIONS.values()) <= there
    assert not set(RENAMED_OPTIONS) & there
    for old, new in WORDS.items():
        group, _, choice = new.partition("=")
        if "/" not in choice and (CONF / group).is_dir() and choice.isidentifier():
            assert (CONF / group / f"{choice}.yaml").exists(), old


def test_a_sweep_under_old_names_runs_under_new_ones(tmp_path):
    words = ["-m", *SMALL, "trainer.max_steps=2", "callbacks=none", "logger=none", "jobs=1", "cell=dpo,sft"]
    words = [word.replace("reference_training", "start") for word in words]
    words += [f"hydra.sweep.dir={tmp_path / 'sweep'}", f"cache={tmp_path / 'cache'}"]
    said = Warm(words, tmp_path).finish()
    assert said.count("start.steps=8 is now written reference_training.steps=8") == 1
    assert said.count("cell=dpo,sft is now written experiment/variant=dpo,sft") == 1
    summaries = [json.loads(path.read_text()) for path in (tmp_path / "sweep").glob("*/summary.json")]
    assert {summary["experiment/variant"] for summary in summaries} == {"dpo", "sft"}


def of_earlier_version(config):
    """The configuration of a run under the names of keys, callbacks and modules that it had."""
    new_to_old = {new: old for old, new in RENAMED_OPTIONS.items()}
    old = {new_to_old.get(key, key): value for key, value in config.items()}
    old["callbacks"]["how_to_go_on"] = old["callbacks"].pop("resume_hint")
    old["optimizer"]["_target_"] = "torch.optim.AdamW"
    old["sft_loss"]["_target_"] = "segdpo.training.supervised_losses.cross_entropy"
    return old


def test_a_finished_run_of_an_earlier_version_is_recognised(tmp_path):
    words = [*SMALL, "trainer.max_steps=2", "callbacks.panels=null"]
    summary = run_recipe(composed(*words, folder=tmp_path))
    path = tmp_path / "run" / "config.yaml"
    old = of_earlier_version(read_config(path))
    assert {"pairs", "rule", "start", "ckpt_path"} <= set(old)
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(old)))
    before = path.stat().st_mtime_ns
    assert run_recipe(composed(*words, folder=tmp_path))["policy"] == summary["policy"]
    assert path.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"reference_training\.steps \(8 → 9\)"):
        run_recipe(composed(*words, "reference_training.steps=9", folder=tmp_path))


@pytest.mark.parametrize("name", ["sweep/dpo", "sweep/sft", "lora"])
def test_a_run_that_an_earlier_version_wrote_is_recognised(name, tmp_path):
    """Folders of commit f7ff399, with the words that were typed for them."""
    folder = Path(shutil.copytree(STORED / name, tmp_path / "run"))
    words = yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text())
    words = [word for word in current_words(words) if not word.startswith("cache=")] + ["scheduler=constant"]
    with pytest.raises(ValueError, match=r"optimise .*keep \('always' → 'safe'\); measured_at \('view' → 'image'\)"):
        run_recipe(composed(*words, folder=tmp_path))
    words += ["keep=always", "measured_at=view", "optimise=val/iou"]
    summary = json.loads((folder / "summary.json").read_text())
    assert run_recipe(composed(*words, folder=tmp_path)) == summary
    with pytest.raises(ValueError, match=r"seed \(0 → 5\)"):
        run_recipe(composed(*words, "seed=5", folder=tmp_path))


def test_a_run_on_the_answers_of_the_data_is_the_same_run(tmp_path):
    now = plain(composed("data=shapes_judged", "questions=answered", folder=tmp_path))
    given = {
        "pairs": {"_target_": "segdpo.story.judging.given"},
        "rule": {"_target_": "segdpo.pairs.preferences.best_worst"},
    }
    old = of_earlier_version(plain(composed("data=shapes_judged", "questions=answered", folder=tmp_path))) | given
    assert differences(current_config(old), now) == []
    assert differences(current_config(old | {"seed": 1}), now) == ["seed (1 → 0)"]


def with_path(path):
    """The network of candidates as an earlier version wrote it; "???" stood for the reference."""
    return {"_target_": "segdpo.pairs.prediction.with_weights", "path": path, "prefix": "", "model": {"classes": 1}}


@pytest.mark.parametrize("path", ["???", "another.pt"])
@pytest.mark.parametrize("candidates", ["tta", "own_candidates", "mc_dropout"])
def test_a_run_on_candidates_of_the_reference_is_the_same_run(candidates, path, tmp_path):
    words = [f"candidates={candidates}", "selection=entropy"]
    now = plain(composed(*words, folder=tmp_path))
    old = of_earlier_version(plain(composed(*words, folder=tmp_path)))
    predict = {"_target_": "segdpo.pairs.prediction.predict_with", "device": "cpu", "model": with_path(path)}
    if candidates == "mc_dropout":
        old["pairs"] |= {"device": "cpu", "model": with_path(path)}
    for source in old["pairs"].get("sources", {"": old["pairs"]}).values():
        source |= {} if candidates == "mc_dropout" else {"predict": predict}
    old["selection"]["acquisition"]["predict"] = predict
    assert (differences(current_config(old), now) == []) == (path == "???")
