"""Predictions on disk: masks as PNG of class ids, probabilities as .npz, overlays to look at; never half a file."""

import io
import os
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from segdpo.data.errors import DataError
from segdpo.data.files import path_inside
from segdpo.data.image_files import SUFFIXES, encode_image, encode_mask
from segdpo.data.overlay import overlay
from segdpo.pairs.prediction import masks_of
from segdpo.pairs.record import Image, Mask

KINDS = ("masks", "probabilities", "overlays")


def find_images(where: Path, leave_out: Path) -> dict[str, Path]:
    """Return the images at `where`, a file or a folder searched to its bottom, under the names of their predictions.

    The name is the path in the folder without suffix; images that only the suffix tells apart keep it in the name.
    What lies in `leave_out` is no image: predictions may be written into the folder of the images.
    """
    if where.is_file():
        return {where.stem: where}
    if not where.is_dir():
        raise DataError(f"{where}: no such file or folder; give an image, or a folder of images.")
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


def write_prediction(
    folder: Path,
    name: str,
    image: Image,
    logits: Float32[np.ndarray, "classes H W"],
    classes: Sequence[str],
    kinds: Collection[str] = ("masks",),
) -> Mask:
    """Write the prediction for one image under `folder`/KIND/`name` for each of the kinds, and return the mask."""
    mask: Mask = masks_of(logits[None])[0]
    if "masks" in kinds:
        _write(path_inside(folder, "masks", f"{name}.png"), encode_mask(mask))
    if "probabilities" in kinds:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, probabilities=probabilities(logits).astype(np.float16), classes=np.array(classes))
        _write(path_inside(folder, "probabilities", f"{name}.npz"), buffer.getvalue())
    if "overlays" in kinds:
        pixels = image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2)
        _write(path_inside(folder, "overlays", f"{name}.png"), encode_image(overlay(pixels, mask, tuple(classes))).data)
    return mask


def probabilities(logits: Float32[np.ndarray, "classes H W"]) -> Float32[np.ndarray, "classes H W"]:
    """Return the probability of each class; one channel of logits gives two classes, background and foreground."""
    both = np.concatenate([np.zeros_like(logits), logits]) if len(logits) == 1 else logits
    powers = np.exp(both - both.max(0))
    return np.asarray(powers / powers.sum(0), np.float32)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
