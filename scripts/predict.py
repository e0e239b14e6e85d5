"""Predict masks for an image or a folder of images, of any size, with a trained network.

    python scripts/predict.py MODEL IMAGES --out predictions --probabilities --overlays

MODEL is a run's folder, a .safetensors or a .ckpt. Exit status 1 when an image could not be read: it is named, the
others are predicted. docs/deploy.md says what is written.
"""

import argparse
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from segdpo.checks import check_device
from segdpo.files import DataError
from segdpo.inference import KINDS, check_windows, find_images, open_segmenter, predict_files


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    options = _parse(arguments)
    console = Console(stderr=True, soft_wrap=True)
    try:
        check_windows(options.window, options.overlap, options.batch)
        check_device("--device", options.device)
        files = find_images(options.images, leave_out=options.out)
        segmenter, description = open_segmenter(options.model, trusted=options.trust)
    except (DataError, OSError, ValueError) as error:
        console.print(f"[red]error[/red] {escape(str(error))}")
        return 1
    outcomes = predict_files(
        segmenter,
        description,
        files,
        options.out,
        kinds=[kind for kind in KINDS if kind == "masks" or getattr(options, kind)],
        window=options.window,
        overlap=options.overlap,
        batch=options.batch,
        device=options.device,
    )
    skipped = 0
    for outcome in track(outcomes, "predicting", total=len(files), console=console):
        if outcome.error:
            skipped += 1
            console.print(f"[red]skipped[/red] {escape(outcome.error)}")
    print(f"{options.out}: {len(files) - skipped} of {len(files)} images predicted, {skipped} skipped")
    return int(skipped > 0)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a run's folder, a .safetensors or a .ckpt")
    parser.add_argument("images", type=Path, help="an image, or a folder that is searched to its bottom")
    parser.add_argument("--out", type=Path, required=True, help="gets masks/, probabilities/ and overlays/")
    parser.add_argument("--probabilities", action="store_true", help="write .npz too: float16 [classes, height, width]")
    parser.add_argument("--overlays", action="store_true", help="write pictures of the masks over the images too")
    parser.add_argument("--window", type=int, default=512, help="larger images are cut into windows of this side")
    parser.add_argument("--overlap", type=float, default=0.25, help="the share of a window that its neighbour sees too")
    parser.add_argument("--batch", type=int, default=4, help="windows, or small images, in one forward pass")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, help=f"where the network runs (here: {device})")
    parser.add_argument("--trust", action="append", default=[], metavar="PACKAGE", help="of your own networks")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
