"""The figures of own data, each measured by what a user would run: `make own-data`.

    python scripts/own_data.py --only layouts commands

predictions   whether `segdpo predict` gives the masks that `segdpo evaluate` scored, on three data sets
thin          thin structures: IoU after training on crops ÷ after training on whole images, data=vessels
layouts       folders as people have them that are read without a question, of those that the tests make
start         10,000 images, 16 with gold: seconds from the command to the first optimiser step of the reference
commands      from an unknown folder to masks of new images: the commands of docs/own_data.md, and how many fail
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from segdpo.data import Shapes, encode_image, encode_mask, guess
from segdpo.files import DataError

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests" / "helpers")]
# Few steps: what is compared does not depend on how good a network is.
QUICK = ["reference_training.steps=20", "trainer.max_steps=10", "callbacks=none", "threads=1"]
FEW = ["reference_training=few_masks", "candidates=own_candidates"]
DATA = {
    "shapes": ["data=shapes"],
    "shapes_multiclass": ["data=shapes_multiclass", "transforms=resized", "transforms.size=48"],
    "bubil": ["data=bubil", "transforms=resized", *FEW],
}
BUBIL = Path(os.environ.get("SEGDPO_DATA", ROOT / "data"), "bubil")  # as in conf/data/bubil.yaml
# Ends the process at the first optimiser step, and says when that was.
UNTIL_FIRST_STEP = """
import os, sys, time, torch
from torch.optim import optimizer
begin = float(sys.argv.pop(1))
def stop(*_):
    print(f"first step after {time.time() - begin:.1f} s", flush=True)
    os._exit(0)
optimizer.register_optimizer_step_post_hook(stop)
from segdpo.cli import main
main()
"""


def predictions(folder: Path) -> str:
    """Train for a few steps on each data set, then predict and evaluate."""
    from check_predictions import compare

    found = []
    for name, words in DATA.items():
        if name == "bubil" and not BUBIL.exists():
            found.append(f"bubil is not measured: {BUBIL} is not there, set SEGDPO_DATA")
            continue
        run(["train", *words, *QUICK, f"hydra.run.dir={folder / name}"], ROOT)
        (folder / f"{name}_predicted").mkdir()
        row = compare(folder / name, folder / f"{name}_predicted", [])
        found.append(f"{name} {row.predicted:.6f} against {row.evaluated:.6f} ({row.images} images)")
    return "; ".join(found)


def thin(folder: Path) -> str:
    """Run the experiment of docs/results.md on one seed."""
    variants = "experiment/variant=vessels_crops,vessels_whole"
    run(["train", "-m", "experiment=vessels", variants, "seed=1", f"hydra.sweep.dir={folder}"], ROOT)
    iou = {}
    for path in folder.rglob("summary.json"):
        summary = json.loads(path.read_text())
        iou[summary["experiment/variant"]] = summary["policy"]["iou"]["mean"]
    crops, whole = iou["vessels_crops"], iou["vessels_whole"]
    return f"{crops / whole:.3f} (IoU {crops:.3f} ÷ {whole:.3f}, seed 1)"


def layouts(folder: Path) -> str:
    """Write each layout of the tests, and open it."""
    from layouts import KNOWN  # type: ignore[import-not-found]

    found = 0
    for build in KNOWN:
        (folder / build.__name__).mkdir()
        build(folder / build.__name__)
        try:
            found += bool(guess(folder / build.__name__).line)
        except DataError as error:
            print(f"{build.__name__}: {error}", file=sys.stderr)
    return f"{found} of {len(KNOWN)}"


def start(folder: Path) -> str:
    """Write a large folder, and train until the first step."""
    write_folder(folder / "large", images=10_000, gold=16, size=128)
    words = ["data=plain", f"data.root={folder / 'large'}", *FEW, "judge=agreement", "threads=1"]
    code = [sys.executable, "-c", UNTIL_FIRST_STEP, str(time.time()), "train", *words]
    said = subprocess.run(code, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False)
    if not (line := re.search(r"first step after (.*)", said.stdout)):
        raise SystemExit(f"No step was made:\n{said.stdout}\n{said.stderr}")
    return line[1]


def commands(folder: Path) -> str:
    """Run the first three commands of docs/own_data.md, the second as the first prints it."""
    write_folder(folder / "MY_FOLDER", images=40, gold=8, size=64)
    write_folder(folder / "NEW_IMAGES", images=3, gold=0, size=64)
    check, _, predict = documented_commands()[:3]
    said = run(check, folder)
    train = next(shlex.split(line)[1:] for line in said.splitlines() if line.startswith("segdpo train "))
    run(train, folder)
    run(predict, folder)
    masks = list((folder / "predictions" / "masks").rglob("*.png"))
    return f"3 commands, 0 failures, {len(masks)} masks"


def documented_commands() -> list[list[str]]:
    """Return the commands in the shell blocks of docs/own_data.md, without the word segdpo."""
    page = (ROOT / "docs" / "own_data.md").read_text()
    lines = [line for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("segdpo ")]


def write_folder(root: Path, images: int, gold: int, size: int) -> None:
    """Write images of cells, the first of them with gold in 0 and 255."""
    shapes = Shapes(count=min(images, 40), size=size)
    records = [shapes[k] for k in range(len(shapes))]
    for name in ("images", "masks") if gold else ("images",):
        (root / name).mkdir(parents=True)
    for k in range(images):
        record = records[k % len(records)]
        # A pixel says which image it is: equal images would be duplicates.
        image = record.image.copy()
        image[0, 0] = (*divmod(k, 256), 0)
        (root / f"images/{k:05d}.png").write_bytes(encode_image(image).data)
        if k < gold and record.gold is not None:
            (root / f"masks/{k:05d}.png").write_bytes(encode_mask(record.gold * np.uint8(255)))


def run(words: Sequence[str], where: Path) -> str:
    """Run `segdpo` with these words in a folder, and return what it prints; stop if it fails."""
    code = "from segdpo.cli import main; import sys; sys.exit(main())"
    found = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=where,
        env=environment(where),
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode:
        raise SystemExit(f"segdpo {shlex.join(words)} failed:\n{found.stdout[-2000:]}\n{found.stderr[-2000:]}")
    return found.stdout


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of a command: a cache of its own, so that everything is computed, and this checkout."""
    cache = folder / "cache" if folder != ROOT else ROOT / ".cache" / "own-data"
    return {**os.environ, "SEGDPO_CACHE": str(cache), "PYTHONPATH": str(ROOT)}


FIGURES = {
    "predictions": ("`predict` = `evaluate`, mean IoU", predictions),
    "thin": ("thin structures: crops ÷ whole images", thin),
    "layouts": ("layouts recognised", layouts),
    "start": ("10,000 images, 16 with gold: to the first step", start),
    "commands": ("from an unknown folder to masks of new images", commands),
}


def main() -> None:
    """Measure what is asked for and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=FIGURES, default=list(FIGURES))
    options = parser.parse_args()
    print("| | measured |\n|---|---|")
    for name in options.only:
        words, measure = FIGURES[name]
        with TemporaryDirectory() as folder:
            print(f"| {words} | {measure(Path(folder))} |", flush=True)


if __name__ == "__main__":
    main()
