"""Single experiments run two steps; tables compose, and their runs are those of the documents."""

import os
import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from small import CONF, CONVOLUTION, ROOT, composed, runs_of

from segdpo.recipes.config import check_at_start
from segdpo.recipes.run import run_recipe

SINGLE = ["bubil", "displacement", "few_masks", "lora", "published"]
# How many choices there are of each, seeds aside.
TABLES = {
    "displacement": 9,
    "displacement_camvid": 6,
    "worth_noisy_masks": 19,
    "worth_few_masks": 14,
    "worth_bubil_noisy": 9,
    "worth_bubil_few": 9,
    "budget": 18,
    "label_noise": 15,
    "near_ties": 9,
    "pair_source": 10,
    "score_ablation": 16,
    "random_judge": 2,
    "vessels": 3,
}
SEEDS = {"displacement_camvid": 3, "vessels": 3, "random_judge": 10}
ELSEWHERE = ["online_dpo", "frontier", "frontier_bubil"]  # test_frontier_conf.py
SHORT = [*CONVOLUTION, "reference_training.steps=2", "trainer.max_steps=2", "trainer.accelerator=cpu", "threads=1"]
SHAPES = ["data.count=40", "data.size=32"]
VARIANTS = sorted(
    path.stem
    for path in (CONF / "experiment" / "variant").glob("*.yaml")
    if not path.stem.startswith(("frontier_", "vessels_"))
)


def sweep_of(name):
    """The sweep that -m would run, and what the experiment says of Hydra."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [f"experiment={name}"], return_hydra_config=True)
    return runs_of(config.hydra.sweeper.params), config.hydra


@pytest.mark.untraced
@pytest.mark.parametrize("name", SINGLE)
def test_two_steps(name, tmp_path):
    chosen = composed(f"experiment={name}", folder=tmp_path)
    own = SHAPES if chosen.data._target_.endswith("Shapes") else []
    root = chosen.data.get("root")
    if root is not None and not Path(root).exists():
        pytest.skip(f"{root} is not here")
    summary = run_recipe(composed(*SHORT, *own, f"experiment={name}", folder=tmp_path))
    assert summary["difference"]["iou"]["n"] > 0
    assert os.path.exists(tmp_path / "run" / "panel.png")


def test_every_experiment_is_tested():
    assert {path.stem for path in (CONF / "experiment").glob("*.yaml")} == {*SINGLE, *TABLES, *ELSEWHERE}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_has_a_folder_of_its_own_and_all_its_runs(name, tmp_path):
    runs, hydra = sweep_of(name)
    seeds = {word for one in runs for word in one if word.startswith("seed=")}
    assert len(seeds) == SEEDS.get(name, 5)
    assert len(runs) == TABLES[name] * len(seeds)
    assert len({tuple(one) for one in runs}) == len(runs)
    assert hydra.sweep.dir == f"multirun/{name}"
    assert "experiment" in hydra.job.config.override_dirname.exclude_keys
    check_at_start(composed(f"experiment={name}", *runs[-1], folder=tmp_path))


def test_variants_are_what_they_are_called():
    for name in VARIANTS:
        config = composed(f"experiment/variant={name}", "candidates=logit_noise")
        target = config.finetune.target if "finetune" in config.task._target_ else None
        method = re.sub("_(3_rounds|all_pairs|weighted_pairs)$", "", name)
        assert config.rounds == (3 if name.endswith("_3_rounds") else 1)
        assert config.questions._target_.endswith("all_pairs" if name.endswith("_pairs") else "best_worst")
        assert ("weight" in config.questions) == name.endswith("_weighted_pairs")
        if target is not None:
            assert method == {"gold": "dense_gold", "consensus": "consensus"}[target]
        else:
            with initialize_config_dir(str(CONF), version_base="1.3"):
                assert config.loss == compose("train", [f"loss={method}"]).loss


def test_seeds_have_images_or_folds_of_their_own():
    assert composed("experiment=displacement", "seed=3").data.seed == 3
    bubil = composed("experiment=worth_bubil_few", "seed=3")
    assert (bubil.datamodule.split.fold, bubil.datamodule.split.folds) == (3, 5)
    assert (bubil.reference_training.target, bubil.reference_training.images, bubil.reference_training.judge_seen) == (
        "gold",
        16,
        False,
    )


def test_the_page_of_results_has_the_command_of_each_table():
    text = (ROOT / "docs" / "results.md").read_text()
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    words = [shlex.split(line) for line in lines]
    run = {word.partition("=")[2] for line in words if "-m" in line for word in line if word.startswith("experiment=")}
    assert run == set(TABLES)
    gathered = [line for line in words if line[1] == "scripts/collect.py"]
    assert {Path(line[2]).name for line in gathered} == set(TABLES)
    for line in gathered:
        rows = {line[at + 1] for at, word in enumerate(line) if word in ("--dense", "--against")}
        runs, _ = sweep_of(Path(line[2]).name)
        assert rows <= {word.partition("=")[2] for one in runs for word in one}


@pytest.mark.untraced
@pytest.mark.parametrize("name", ["fast", "overfit", "profiler"])
def test_debugging(name, tmp_path):
    config = composed(
        *CONVOLUTION, *SHAPES, f"debug={name}", "reference_training.steps=2", "threads=1", folder=tmp_path
    )
    if name != "fast":
        config.trainer.max_steps = 3
    summary = run_recipe(config)
    assert summary["seconds"]["policy"] > 0
    assert (name == "profiler") == any(tmp_path.rglob("*profile*"))
