"""Which metric of held-out judgements picks checkpoints as well as IoU with gold does: trains, and prints a table.

    nice python scripts/compare_monitors.py --out outputs/monitors     # about ten minutes of one core
    python scripts/compare_monitors.py --out outputs/monitors --table  # the table again, without training

Each loss is trained from each reference, and every validation keeps all metrics and the test images' IoU with gold.
A monitor picks the validation at which it is highest, the start (where every gain is 0) among them.
"""

import argparse
import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch import Callback, seed_everything
from torch import nn

from segdpo.checks import IGNORE
from segdpo.data import PairBatch
from segdpo.files import write_atomically
from segdpo.metrics import Overlap
from segdpo.recipes import fit, make_task, open_run, quieten, rounds_of, train_or_load_reference
from segdpo.reports import student_interval
from segdpo.scores import Score, predicted_classes
from segdpo.training import GAINS, HeldOutGains, frozen_copy, score_batch

CONF = Path(__file__).parents[1] / "conf"
LOSSES = ("dpo", "hinge_anchor", "lse_anchor", "dpo_nll", "sft", "simpo")
COMMON = (
    *("callbacks=none", "logger=none", "trainer.enable_checkpointing=false", "trainer.accelerator=cpu", "threads=1"),
    *("keep=always", "optimise=val/iou", "trainer.max_steps=48", "datamodule.split.val=0.2"),
    "+trainer.limit_val_batches=0",  # the Recorder validates
)
EVERY = 8  # steps between two validations
SETS = {
    "shapes": ("data.size=32", "data.count=200", "data.seed=${seed}", "reference_training.steps=80"),
    "bubil": (
        *("data=bubil", "transforms=resized", "transforms.size=48", "datamodule/split=folds"),
        *("datamodule.split.fold=${seed}", "reference_training=few_masks", "reference_training.steps=150"),
        *("candidates=own_candidates", "optimizer.lr=1e-4"),
    ),
    "dsb2018_fixes": (
        *("data=dsb2018", "transforms=resized", "transforms.size=64", "datamodule/split=folds"),
        *("datamodule.split.fold=${seed}", "reference_training=few_masks", "reference_training.steps=150"),
        *("candidates=own_candidates", "optimizer.lr=1e-4"),
    ),
}
# The metrics compared; `iou` is IoU with gold of the validation images, `gain` the smaller of the two before it.
MONITORS = ("iou", "accuracy", "margin", "chosen_gain", "iou_margin", "chosen_iou", "gain")


class Recorder(Callback):
    """Keeps the held-out metrics and the IoU of validation and test images at each validation."""

    def __init__(self, policy: nn.Module, reference: nn.Module, data: Any, scores: tuple[Score, Score]) -> None:
        self.policy, self.reference, self.data, self.scores = policy, frozen_copy(reference), data, scores
        self.gains = HeldOutGains(reference)
        self.rows: list[dict[str, float]] = []

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Keep the start."""
        self.rows.append(self.measure())

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Validate if it is time."""
        if trainer.global_step % EVERY == 0:
            self.rows.append(self.measure())

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Return all metrics of the policy as it is."""
        was_training = self.policy.training
        self.policy.eval()
        found = self.of_pairs()
        found |= {"gain": min(found["chosen_iou"], found["iou_margin"])}
        found |= {"iou": self.iou(self.data.val_dataloader()), "test_iou": self.iou(self.data.test_dataloader())}
        self.policy.train(was_training)
        return found

    def of_pairs(self) -> dict[str, float]:
        """Return the means over the validation pairs."""
        rows, weights, (objective, image) = [], [], self.scores
        for batch in batches_of(self.data.val_dataloader()):
            if isinstance(batch, PairBatch):
                logits = self.policy(batch.image), self.reference(batch.image)
                policy, reference = (score_batch(self.scores, one, batch, wants_chosen=[image]) for one in logits)
                margin = policy[objective].margin - reference[objective].margin
                gain = policy[image].chosen - reference[image].chosen
                rows.append(torch.stack([(margin > 0).float(), margin, gain, *self.gains(logits[0], batch).values()]))
                weights.append(batch.weight)
        weight = torch.cat(weights)
        means = (torch.cat(rows, 1) * weight).sum(1) / weight.sum()
        return dict(zip(("accuracy", "margin", "chosen_gain", *GAINS), means.tolist(), strict=True))

    def iou(self, loaders: Any) -> float:
        """Return the policy's mean IoU with gold."""
        overlap = Overlap(2)
        for batch in batches_of(loaders):
            overlap.update(predicted_classes(self.policy(batch.image)), batch.gold.masked_fill(~batch.valid, IGNORE))
        return float(overlap.compute()["iou"])


def batches_of(loaders: Any) -> list[Any]:
    """Return the batches of one or of several loaders."""
    return [batch for loader in (loaders if isinstance(loaders, list) else [loaders]) for batch in loader]


def trained(words: list[str], out: Path) -> list[dict[str, float]]:
    """Train as the words say and return what was kept at each validation."""
    config = compose("train", overrides=[*words, f"run_folder={out}"])
    torch.set_num_threads(1)
    seed_everything(config.seed, workers=True, verbose=False)
    run = open_run(config)
    reference = train_or_load_reference(run)
    (round_,) = rounds_of(run, reference)
    scores = Score(region="disagreement"), Score()
    recorder = Recorder(round_.policy, reference.network, round_.data, scores)
    fit(round_.run, make_task(round_), round_.data, round_.policy, [recorder])
    return recorder.rows


def picked(rows: list[dict[str, float]], monitor: str) -> float:
    """Return the test IoU of the validation at which a monitor is highest, the first of equals."""
    values = [row[monitor] if math.isfinite(row[monitor]) else -math.inf for row in rows]
    return rows[int(np.argmax(values))]["test_iou"]


def table(runs: dict[tuple[str, str, int], list[dict[str, float]]]) -> str:
    """Return the table in Markdown: the test IoU picked minus that picked by IoU, over losses and seeds."""
    sets = list(dict.fromkeys(name for name, *_ in runs))
    lines = [f"| monitor | {' | '.join(sets)} | all | worst run |", "|---" * (len(sets) + 3) + "|"]
    for monitor in ("last", *MONITORS):
        cells, everything = [], []
        for name in sets:
            losses = []
            for key, rows in runs.items():
                if key[0] == name:
                    chosen = rows[-1]["test_iou"] if monitor == "last" else picked(rows, monitor)
                    losses.append(chosen - picked(rows, "iou"))
            found = student_interval(losses)
            cells.append(f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]")
            everything += losses
        found = student_interval(everything)
        cells += [f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]", f"{min(everything):+.3f}"]
        lines.append(f"| `{monitor}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Train what is not there yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder; runs that it has are not trained again")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--losses", nargs="+", default=list(LOSSES))
    parser.add_argument("--table", action="store_true", help="print the table of the runs that are there")
    given = parser.parse_args()
    quieten()
    runs = {}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for name, seed, loss in product(given.sets, given.seeds, given.losses):
            path = given.out / f"{name}_{seed}_{loss}.json"
            if not path.exists() and not given.table:
                rows = trained([*COMMON, *SETS[name], f"seed={seed}", f"loss={loss}"], given.out / "run")
                write_atomically(path, json.dumps(rows).encode())
            if path.exists():
                runs[name, loss, seed] = json.loads(path.read_text())
    print(table(runs))


if __name__ == "__main__":
    main()
