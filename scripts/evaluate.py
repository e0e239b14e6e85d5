"""Measure a network, or two against each other, on images with gold: per image, per class, with intervals.

    python scripts/evaluate.py outputs/mine
    python scripts/evaluate.py outputs/mine --split all --out elsewhere --data conf/data/bubil.yaml data.gold=masks_gold

MODEL is a run's folder, a .safetensors or a .ckpt. Of a run, data, eval transforms and split are its own unless they
are given, and the other network is its reference. docs/evaluation.md says what is written.
"""

import argparse
import sys
from pathlib import Path

import torch
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.markup import escape

from segdpo.metrics import MASK_METRICS
from segdpo.recipes import SPLITS, Request, evaluate_weights
from segdpo.reports import evaluation_table

CONF = Path(__file__).resolve().parents[1] / "conf"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    options = _parse(arguments)
    errors = Console(stderr=True, soft_wrap=True)
    # On a GPU some sums are of another order each time unless told not to; twice shall give the same files.
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        report = evaluate_weights(Request(**vars(options), conf=CONF))
    except (OSError, ValueError, HydraException, OmegaConfBaseException) as error:
        said = error.__cause__ if isinstance(error, HydraException) and error.__cause__ else error
        errors.print(f"[red]error[/red] {escape(str(said))}")
        return 1
    for note in report.notes:
        errors.print(f"[yellow]note[/yellow] {escape(note)}")
    console = Console()
    console.print(evaluation_table(report.summary))
    console.print(f"{report.folder}: images.csv, classes.csv, summary.json, overlays/", soft_wrap=True, markup=False)
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a run's folder, a .safetensors or a .ckpt")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of data, transforms, datamodule.split …")
    parser.add_argument("--against", type=Path, help="the network to compare with (of a run: its reference)")
    parser.add_argument("--data", help="a .yaml of conf/data/, a folder, a pack or a COCO .json (of a run: its data)")
    parser.add_argument("--split", choices=SPLITS, default="test", help="which images (here: test)")
    parser.add_argument("--metrics", nargs="+", choices=MASK_METRICS, default=MASK_METRICS, help="(here: all)")
    parser.add_argument("--tolerance", type=float, default=2.0, help="of surface Dice, in pixels (here: 2)")
    parser.add_argument("--native", action="store_true", help="measure at each image's own size")
    parser.add_argument("--out", type=Path, help="gets the files (of a run: its evaluation/)")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, help=f"where the networks run (here: {device})")
    parser.add_argument("--trust", action="append", default=[], dest="trusted", metavar="PACKAGE", help="of your own")
    return parser.parse_intermixed_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
