"""The kinds of files in a run's folder that reports read."""

import contextlib
import io
import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from fuzzing.data_steps import digest
from fuzzing.data_structured import csv_file
from fuzzing.hostile import Hostile
from fuzzing.kind import Files, Kind
from fuzzing.mutations import dump, mutate_value
from fuzzing.weight_kinds import run_config
from segdpo.inference import open_segmenter
from segdpo.models import save_weights
from segdpo.reports import collect_sweep, html_report

STORED = Path(__file__).resolve().parents[2] / "tests/stored/run"
SMALL = ("config.yaml", "summary.json", "metrics.csv", "evaluation")


def run(root: Path, seed: int) -> None:
    """Write a run as it is stored for the tests, without its weights."""
    for name in SMALL:
        found = STORED / name
        (shutil.copytree if found.is_dir() else shutil.copy)(found, _made(root / "run") / name)
    _made(root / "run/.hydra").joinpath("overrides.yaml").write_text(f"- loss=hinge_anchor\n- seed={seed}\n")
    path = root / "run/summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "seed": seed}))


def report(folder: Path, out: Path) -> str:
    """Do what `segdpo report` does."""
    return digest(html_report([folder / "run"], lambda runs: runs).replace(str(folder), ""))


def collect(folder: Path, out: Path) -> str:
    """Do what `segdpo collect` does."""
    with contextlib.redirect_stdout(io.StringIO()):
        return digest(*sorted(collect_sweep(folder, []).items()))


def with_weights(root: Path, seed: int) -> None:
    """Write the same with its policy."""
    run(root, seed)
    segmenter, _ = open_segmenter(STORED)
    description = {name: (segmenter.description or {})[name] for name in ("model", "classes", "mean", "std", "adapter")}
    save_weights(root / "run/policy.safetensors", segmenter, {"config": json.dumps(description)})


def publish(folder: Path, out: Path) -> str:
    """Do what `segdpo publish` does: the model card repeats the summary."""
    segmenter, _ = open_segmenter(folder / "run")
    segmenter.save_pretrained(out / "published", license="mit")
    return digest((out / "published/README.md").read_text())


def json_of(name: str) -> Any:
    """Return a mutation of a JSON file."""

    def mutate(rng: Random, files: Files, hostile: Hostile) -> Files:
        return {name: dump(rng, mutate_value(rng, json.loads(files[name]), hostile))}

    return mutate


def _yaml(rng: Random, files: Files, hostile: Hostile) -> Files:
    changed = run_config(rng, {"config.yaml": files["run/config.yaml"]}, hostile)
    return {"run/config.yaml": changed["config.yaml"]}


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


_READ = (report, collect)
_ERRORS = (HydraException, OmegaConfBaseException)
RUN_KINDS = (
    Kind("summary.json", run, "run/summary.json", _READ, json_of("run/summary.json"), share=0.1),
    Kind("card", with_weights, "run/summary.json", (publish,), json_of("run/summary.json"), share=0.05),
    Kind("metrics.csv", run, "run/metrics.csv", (report,), csv_file("run/metrics.csv"), share=0.1),
    Kind(
        "evaluation.json",
        run,
        "run/evaluation/summary.json",
        _READ,
        json_of("run/evaluation/summary.json"),
        share=0.1,
    ),
    Kind("images.csv", run, "run/evaluation/images.csv", _READ, csv_file("run/evaluation/images.csv"), share=0.1),
    Kind("overrides.yaml", run, "run/.hydra/overrides.yaml", _READ, share=0.1),
    Kind("report-config.yaml", run, "run/config.yaml", _READ, _yaml, share=0.1, clean=_ERRORS, any_path=True),
)
