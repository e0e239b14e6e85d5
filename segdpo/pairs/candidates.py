"""Candidate masks of a network or of any function, from one prediction each.

A source of masks is a plain function `(record, rng, *, …) -> Candidates`; bind its options with `functools.partial`, in
yaml `_partial_: true`. Sources that predict many times stand in candidates_sampled.py. `predict` is said in
prediction.py; none of the sources drops duplicates: see `distinct`.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.special import log_softmax, logit

from segdpo.checks import check_range
from segdpo.pairs.candidates_value import Candidates
from segdpo.pairs.prediction import Predict, logits_of, masks_of
from segdpo.pairs.record import Image, Masks, Record


def existing(record: Record, rng: np.random.Generator, *, start: str = "") -> Candidates:
    """Return the masks that the record came with, those whose name starts with `start`."""
    kept = [number for number, name in enumerate(record.mask_names) if name.startswith(start)]
    return Candidates(record.masks[kept], tuple(record.mask_names[number] for number in kept))


def thresholds(
    record: Record,
    rng: np.random.Generator,
    *,
    predict: Predict,
    probabilities: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
) -> Candidates:
    """Cut the probability of the object at several heights; for binary models (one channel)."""
    for probability in probabilities:
        check_range("probabilities", probability, above=0, below=1)
    logits = logits_of(predict, record.image[None])
    if logits.shape[1] != 1:
        raise ValueError(
            f"Expected a binary model (one channel) for thresholds but got {logits.shape[1]} channels; "
            "use class_biases for several classes."
        )
    masks = np.stack([(logits[0, 0] > logit(height)).astype(np.uint8) for height in probabilities])
    return Candidates(masks, tuple(f"thresholds-{height:g}" for height in probabilities))


def class_biases(
    record: Record,
    rng: np.random.Generator,
    *,
    predict: Predict,
    count: int = 8,
    bias: float = 1.0,
    temperature: float = 0.3,
) -> Candidates:
    """Favour some classes over others: argmax_c (log p_c / T_c + b_c).

    Drawn anew for each candidate: b_c ~ N(0, bias²), ln T_c ~ N(0, temperature²). Candidate 0 is the plain prediction.
    A binary model counts as two classes, log σ(−z) and log σ(z).
    """
    check_range("bias", bias, least=0)
    check_range("temperature", temperature, least=0)
    logits = logits_of(predict, record.image[None])[0]
    if len(logits) == 1:
        logits = np.concatenate([np.zeros_like(logits), logits])
    log_p = log_softmax(logits.astype(np.float64), axis=0)
    masks = [logits.argmax(0)]
    for _ in range(count - 1):
        scale = np.exp(temperature * rng.standard_normal(len(logits)))
        shift = bias * rng.standard_normal(len(logits))
        masks.append((log_p / scale[:, None, None] + shift[:, None, None]).argmax(0))
    return Candidates(np.stack(masks).astype(np.uint8), tuple(f"class_biases-{k}" for k in range(count)))


def checkpoints(record: Record, rng: np.random.Generator, *, predicts: Mapping[str, Predict]) -> Candidates:
    """Take the prediction of each of several models, by name: checkpoints of one run, or different networks."""
    masks = [masks_of(logits_of(predict, record.image[None]))[0] for predict in predicts.values()]
    return Candidates(np.stack(masks), tuple(f"checkpoints-{name}" for name in predicts))


def from_function(
    record: Record, rng: np.random.Generator, *, function: Callable[[Image, np.random.Generator], Masks]
) -> Candidates:
    """Ask `function(image, rng)`, any of yours, for masks of class ids [K, H, W]."""
    masks = np.asarray(function(record.image, rng))
    if masks.ndim != 3 or masks.shape[1:] != record.image.shape[:2]:
        raise ValueError(
            f"Expected the function to return masks [K, {record.image.shape[0]}, {record.image.shape[1]}] "
            f"for record {record.id!r} but got shape {masks.shape}."
        )
    if masks.dtype.kind not in "bui" or (masks.size and not 0 <= masks.min() <= masks.max() <= 255):
        raise ValueError(
            f"Expected integer class ids from 0 to 254, or 255 for ignore, for record {record.id!r} "
            f"but got {masks.dtype} in {masks.min()} … {masks.max()}; threshold probabilities or take their argmax."
        )
    return Candidates(masks.astype(np.uint8), tuple(f"function-{k}" for k in range(len(masks))))


def distinct(candidates: Candidates) -> Candidates:
    """Drop every mask that is, pixel for pixel, the same as an earlier one."""
    kept = first_of_each(candidates.masks)
    return Candidates(candidates.masks[kept], tuple(candidates.names[number] for number in kept))


def first_of_each(masks: Masks) -> list[int]:
    """Return the numbers of the masks that no earlier mask equals."""
    seen: dict[bytes, int] = {}
    for number, mask in enumerate(masks):
        seen.setdefault(mask.tobytes(), number)
    return list(seen.values())
