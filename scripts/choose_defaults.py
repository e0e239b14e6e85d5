"""Compare settings of training over five data sets: which loss, β, anchor weight, learning rate, steps and questions.

    python scripts/choose_defaults.py --seeds 0 --out multirun/defaults                          # to choose
    python scripts/choose_defaults.py --seeds 1 2 3 --settings hinge_60 … --out multirun/defaults  # to report

Every run is a `python train.py` in the folder OUT/DATA/SETTING/SEED; finished runs are not run again. Prints, for each
setting, the gain in IoU of the policy over its reference: by data set, the mean over data sets, and the worst. Seed s
has fold s of five as its test images (shapes: images of its own). Data sets that are not there are left out and named.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

FEW = ["reference_training=few_masks", "candidates=own_candidates"]
FOLDS = ["datamodule/split=folds", "datamodule.split.folds=5", "transforms=resized", "transforms.size=96"]
DATA = {
    "shapes": ["data=shapes", "datamodule.split.test=0.3"],
    "bubil_noisy": ["data=bubil", *FOLDS, "reference_training.target=any"],
    "bubil_few": ["data=bubil", *FOLDS, *FEW],
    "dsb2018": ["data=dsb2018", *FOLDS, *FEW],
    "hippocampus": ["data=hippocampus_slices", *FOLDS, *FEW, "transforms.size=64"],
}
COSINE = ["scheduler=warmup_cosine", "trainer.max_steps=100"]
SLOW = ["optimizer.lr=1e-4"]
SETTINGS = {
    "hinge_60": ["loss=hinge_anchor", "trainer.max_steps=60"],
    "hinge": ["loss=hinge_anchor", *COSINE],
    "hinge_slow": ["loss=hinge_anchor", *COSINE, *SLOW],
    "hinge_weight_100": ["loss=hinge_anchor", *COSINE, *SLOW, "loss.anchors.hinge.weight=100"],
    "dpo_nll": ["loss=dpo_nll", *COSINE],
    "dpo_nll_slow": ["loss=dpo_nll", *COSINE, *SLOW],
    "hold_nll": ["loss=hold_nll_anchor", *COSINE],
    "hold_nll_slow": ["loss=hold_nll_anchor", *COSINE, *SLOW],
    "hold_nll_all_pairs": ["loss=hold_nll_anchor", *COSINE, *SLOW, "questions=all_pairs"],
    "lse_slow": ["loss=lse_anchor", *COSINE, *SLOW],
    "sft": ["loss=sft", *COSINE],
    "sft_slow": ["loss=sft", *COSINE, *SLOW],
}
# Nothing is stopped or picked here: what every setting ends in is compared.
SAME = ["callbacks=none", "trainer.enable_checkpointing=false", "logger=csv", "threads=1"]


def run(data: str, setting: str, seed: int, out: Path) -> dict[str, float] | None:
    """Return the IoU of policy and reference, and their difference; None if the run failed."""
    folder = out / data / setting / str(seed)
    own = [f"data.seed={seed}"] if data == "shapes" else [f"datamodule.split.fold={seed % 5}"]
    words = [*DATA[data], *SETTINGS[setting], *SAME, *own, f"seed={seed}", f"hydra.run.dir={folder}"]
    if not (folder / "summary.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log.txt").open("w") as log:
            subprocess.run([sys.executable, "train.py", *words], stdout=log, stderr=log, check=False)
    if not (folder / "summary.json").exists():
        return None
    summary = json.loads((folder / "summary.json").read_text())
    return {name: summary[name]["iou"]["mean"] for name in ("policy", "reference", "difference")}


def print_table(gains: dict[tuple[str, str], list[float]], data: Sequence[str], settings: Sequence[str]) -> None:
    """Print the mean gain over seeds of each setting on each data set."""
    table = Table("setting", *data, "mean", "worst")
    for setting in settings:
        means = [float(np.mean(gains[one, setting])) if gains.get((one, setting)) else np.nan for one in data]
        table.add_row(setting, *(f"{mean:+.3f}" for mean in (*means, np.mean(means), np.min(means))))
    Console(width=120).print(table)


def main() -> None:
    """Run what is asked for, one run after the other, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    gains: dict[tuple[str, str], list[float]] = {}
    for seed in options.seeds:
        for data in options.data:
            for setting in options.settings:
                found = run(data, setting, seed, options.out)
                print(data, setting, seed, found or "failed", flush=True)
                gains.setdefault((data, setting), []).extend([found["difference"]] if found else [])
    print_table(gains, options.data, options.settings)


if __name__ == "__main__":
    main()
