"""Gather the runs of a sweep into one table: mean over seeds with a 95 % interval.

python train.py -m loss=sft,dpo,hinge_anchor seed=0,1,2,3,4 hydra.sweep.dir=multirun/losses
python scripts/collect_sweep.py multirun/losses
"""

import argparse
import json
from pathlib import Path
from statistics import mean, stdev

from scipy.stats import t

Runs = dict[str, list[dict[str, float]]]


def read_runs(folder: Path) -> Runs:
    """Return what each run measured, by loss; runs that did not finish have no summary.json and do not count."""
    runs: Runs = {}
    for path in sorted(folder.rglob("summary.json")):
        summary = json.loads(path.read_text())
        runs.setdefault(summary["loss"], []).append(
            {
                "reference": summary["reference"]["iou"],
                "policy": summary["policy"]["iou"],
                "gain": summary["curves"]["chosen_gain"][-1],
            }
        )
    return runs


def mean_and_interval(values: list[float]) -> str:
    """Return "mean ± half width" of Student's 95 % interval; one value has none."""
    if len(values) < 2:
        return f"{mean(values):.3f}"
    half = t.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5
    return f"{mean(values):+.3f} ± {half:.3f}"


def as_markdown(runs: Runs) -> str:
    """Return one row a loss: IoU of the policy, its paired difference to the reference, the chosen gain, the seeds."""
    rows = ["| loss | policy IoU | policy − reference | chosen gain | seeds |", "|---|---|---|---|---|"]
    for loss, measured in sorted(runs.items(), key=lambda item: -mean(run["policy"] for run in item[1])):
        difference = [run["policy"] - run["reference"] for run in measured]
        columns = [
            f"{mean(run['policy'] for run in measured):.3f}",
            mean_and_interval(difference),
            mean_and_interval([run["gain"] for run in measured]),
            str(len(measured)),
        ]
        rows.append(f"| `{loss}` | {' | '.join(columns)} |")
    return "\n".join(rows)


def main() -> None:
    """Print the table of the sweep in a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the sweep wrote its runs, e.g. multirun/losses")
    folder = parser.parse_args().folder
    runs = read_runs(folder)
    if not runs:
        parser.error(f"Expected runs with a summary.json under {folder} but found none; run train.py -m first.")
    print(as_markdown(runs))


if __name__ == "__main__":
    main()
