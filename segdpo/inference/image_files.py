"""Predict masks of image files, and write them."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32

from segdpo.data import SUFFIXES, Image, Preparation, encode_image, encode_mask, overlay
from segdpo.files import DataError, encode_arrays, path_inside, read_file, write_atomically
from segdpo.inference.open import Description
from segdpo.masks import Mask
from segdpo.models import Segmenter
from segdpo.preferences import Network, masks_of

KINDS = ("masks", "probabilities", "overlays")


def find_images(where: Path, leave_out: Path) -> dict[str, Path]:
    """Return name → path of image files; predictions are written under these names.

    A name is the path in the folder without suffix; images that differ only in their suffix keep it.

    Args:
        where: a file, or a folder with its subfolders; of a folder that has a folder `images`, that one.
        leave_out: a folder that is skipped, so that predictions may be written into the folder of the images.
    """
    if where.is_file():
        return {where.stem: where}
    if not where.is_dir():
        raise DataError(f"{where}: no such file or folder; give an image, or a folder of images.")
    if (where / "images").is_dir():  # its masks lie beside them
        where /= "images"
    paths = [
        path
        for path in sorted(where.rglob("*"))
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.resolve().is_relative_to(leave_out.resolve())
    ]
    if not paths:
        raise DataError(f"{where}: Expected images but found none; files may end in {', '.join(SUFFIXES)}.")
    stems = [path.relative_to(where).with_suffix("").as_posix() for path in paths]
    times = Counter(stems)
    return {
        path.relative_to(where).as_posix() if times[stem] > 1 else stem: path
        for stem, path in zip(stems, paths, strict=True)
    }


@dataclass(frozen=True)
class Outcome:
    """The result for an image: predicted, or the error."""

    path: Path
    error: str | None = None


def predict_files(
    segmenter: Segmenter,
    description: Description,
    files: Mapping[str, Path],
    folder: Path,
    *,
    kinds: Collection[str] = ("masks",),
    native: bool = False,
    window: int | None = None,
    overlap: float = 0.25,
    batch: int | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[Outcome]:
    """Predict image files and write the predictions; yield the outcome of each image as it is done.

    The masks are those that evaluation measures: one image at a time, prepared as in training.

    Args:
        segmenter: moved to the device and to evaluation mode.
        description: classes and preparation, as `open_segmenter` returns them.
        files: name → image, as `find_images` returns them.
        folder: gets KIND/NAME.png or .npz.
        kinds: which of "masks", "probabilities" and "overlays" to write.
        native: show images at their own size instead of as in training.
        window: side of the windows in which larger images are predicted; None: as in training, or 512 with `native`.
        overlap: least overlap of neighbouring windows, as a share of the window.
        batch: windows per forward pass; None: as many as fit.
        device: where to compute.
    """
    preparation = preparation_for(description["preparation"], native=native, window=window)
    network = Network(segmenter, preparation, device, overlap, batch)
    for name, path in files.items():
        try:
            image = preparation.decode(read_file(path), str(path))
            (logits,) = network.predict(image[None], str(path))
        except ValueError as error:
            yield Outcome(path, str(error))
            continue
        write_prediction(folder, name, image, logits, description["classes"], kinds)
        yield Outcome(path)


def preparation_for(trained: Preparation, *, native: bool = False, window: int | None = None) -> Preparation:
    """Return the preparation that a user asks for: that of the training, or images at their own size."""
    found = trained.native() if native else trained
    return found if window is None else replace(found, window=window)


def write_prediction(
    folder: Path,
    name: str,
    image: Image,
    logits: Float32[np.ndarray, "classes H W"],
    classes: Sequence[str],
    kinds: Collection[str] = ("masks",),
) -> Mask:
    """Write the prediction of one image to FOLDER/KIND/NAME for each of the kinds, and return the mask."""
    # A prediction can be made again, so it need not reach the disk at once, which would take longer than predicting.
    write = partial(write_atomically, durable=False)
    mask: Mask = masks_of(logits[None])[0]
    if "masks" in kinds:
        write(path_inside(folder, "masks", f"{name}.png"), encode_mask(mask))
    if "probabilities" in kinds:
        content = encode_arrays(probabilities=probabilities(logits).astype(np.float16), classes=np.array(classes))
        write(path_inside(folder, "probabilities", f"{name}.npz"), content)
    if "overlays" in kinds:
        write(path_inside(folder, "overlays", f"{name}.png"), encode_image(overlay(image, mask, classes)).data)
    return mask


def probabilities(logits: Float32[np.ndarray, "classes H W"]) -> Float32[np.ndarray, "classes H W"]:
    """Return the probability of each class; one channel of logits means background and foreground."""
    both = np.concatenate([np.zeros_like(logits), logits]) if len(logits) == 1 else logits
    powers = np.exp(both - both.max(0))
    return np.asarray(powers / powers.sum(0), np.float32)
