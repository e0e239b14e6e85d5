"""Folders of sweeps: short names, an index of them, and a second sweep that is refused."""

import csv
import shlex

import pytest
from hydra.types import RunMode
from omegaconf import OmegaConf

from segdpo.recipes.sweep_folder import LONGEST, SweepFolder, enter, run_name

OWN = "data=plain__data.gold=/home/me/masks__data.root=/home/me/study 3/cells__loss=dpo__seed=0"


def sweep(folder, resume=None):
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}}, "resume": resume})
    SweepFolder().on_multirun_start(config, config_name="train")


def job(folder, *overrides, mode="MULTIRUN"):
    """What Hydra does at the start of a job."""
    (folder / ".hydra").mkdir(parents=True)
    own = {"mode": RunMode[mode], "runtime": {"output_dir": str(folder)}, "overrides": {"task": list(overrides)}}
    SweepFolder().on_job_start(OmegaConf.create({"hydra": own}), task_function=None)


def test_own_data_gives_short_names_without_absolute_paths():
    name = run_name(OWN)
    assert name.startswith("data=plain__gold=masks__root=cells__loss=dpo__seed=0-")
    assert "home" not in name
    # The same last part of another path is another run.
    assert run_name(OWN.replace("/home/me/study", "/data/study")) != name


def test_the_loss_and_the_seed_stay_where_there_is_no_room_for_all():
    many = "__".join([*(f"a{number}.option=value" for number in range(30)), "loss=dpo", "seed=3", "z=1"])
    name = run_name(many)
    assert "__loss=dpo__seed=3" in name
    assert len(name) <= LONGEST + 9


def test_the_index_maps_names_to_overrides_once(tmp_path):
    words = ["data=plain", "data.root=/home/me/study 3/cells", "seed=0"]
    job(tmp_path / "one", *words)
    job(tmp_path / "two", "seed=1")
    enter(tmp_path / "one", words)
    job(tmp_path / "alone", "seed=2", mode="RUN")
    rows = list(csv.DictReader((tmp_path / "index.csv").open()))
    assert [row["run"] for row in rows] == ["one", "two"]
    assert shlex.split(rows[0]["overrides"]) == words


def test_a_second_sweep_in_a_folder_is_refused_unless_it_resumes_the_first(tmp_path):
    folder = tmp_path / "sweep"
    sweep(folder)
    job(folder / "seed=0", "seed=0")
    job(folder / "seed=1", "seed=1")
    (folder / "seed=1" / "summary.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"2 runs, 1 of them finished\. Add resume=last"):
        sweep(folder)
    with pytest.raises(SystemExit, match="resume=last"):
        sweep(folder, resume="outputs/mine/checkpoints/last.ckpt")
    sweep(folder, resume="last")


def test_of_two_sweeps_that_start_together_one_is_refused(tmp_path):
    sweep(tmp_path)
    with pytest.raises(SystemExit, match="0 runs"):
        sweep(tmp_path)


def test_a_sweep_of_an_earlier_version_has_no_index_and_counts_too(tmp_path):
    job(tmp_path / "loss=dpo", "loss=dpo", mode="RUN")
    with pytest.raises(SystemExit, match="1 runs"):
        sweep(tmp_path)
    sweep(tmp_path, resume="last")
