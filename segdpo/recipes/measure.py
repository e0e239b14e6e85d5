"""Measure a network on images with gold: each metric, by image and by class."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn.functional import interpolate

from segdpo.checks import IGNORE
from segdpo.data import GoldBatch, GoldBatches, Numbers, Pipeline, RecordSource
from segdpo.metrics import HIGHER_IS_BETTER, MASK_METRICS, Calibration, mean_over_classes, measure_masks
from segdpo.recipes.config import Plain
from segdpo.scores import predicted_classes

Doubles = np.ndarray[Any, np.dtype[np.float64]]
Values = dict[str, Doubles]
Flags = np.ndarray[Any, np.dtype[np.bool_]]

# Distances between contours take longer than all the others together.
DISTANCES = ("hd95", "surface_dice")
CHEAP = tuple(name for name in MASK_METRICS if name not in DISTANCES)


@dataclass(frozen=True, eq=False)
class Network:
    """A network, the pipeline that makes its input, and what that took from the images and divided them by."""

    module: nn.Module
    pipeline: Pipeline
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Examination:
    """Which images, and what is measured on them.

    `native`: logits are taken back to the image's own size and held against gold there, rather than at the size at
    which the network saw it. `tolerance`, in pixels, is surface Dice's.
    """

    source: RecordSource
    numbers: Numbers
    metrics: tuple[str, ...] = CHEAP
    background: bool = False
    batch_size: int = 8
    seed: int = 0
    tolerance: float = 2.0
    native: bool = False


@dataclass(frozen=True, eq=False)
class Measured:
    """One network: a value an image (the mean over its classes), and a value an image and class; NaN does not count.

    `numbers` are the images' numbers in the source, `without_gold` the ids of those that could not be measured.
    `nothing` [images, classes] says where a class is neither there nor found, so that it does not count.
    """

    ids: list[str]
    numbers: list[int]
    values: Values
    of_classes: Values
    nothing: Flags
    calibration: Plain
    without_gold: list[str]


@torch.no_grad()
def measure_network(
    network: Network, examination: Examination, device: torch.device | str, say: str
) -> Measured | None:
    """Measure a network on all images that have gold; None if none has."""
    ids: list[str] = []
    numbers: list[int] = []
    found: dict[str, list[Tensor]] = {name: [] for name in measured_of(examination)}
    # The first of several processes measures everything, alone.
    calibration = Calibration(sync_on_compute=False)
    data = batches_of(network, examination)
    with Progress(transient=True) as progress:
        bar = progress.add_task(say, total=len(examination.numbers))
        for batch in data:
            for logits, gold in answers(network, batch, device, native=examination.native):
                for name, values in _measured(logits, gold, examination).items():
                    found[name].append(values)
                calibration.update(logits, gold)
            ids += batch.batch.ids
            numbers += batch.numbers
            progress.advance(bar, len(batch.numbers))
    if not ids:
        return None
    joined = {name: torch.cat(values) for name, values in found.items()}
    nothing = joined["iou"].isnan().numpy()
    joined = {name: joined[name] for name in examination.metrics}
    return Measured(
        ids,
        numbers,
        {name: mean_over_classes(values).double().numpy() for name, values in joined.items()},
        {name: values.double().numpy() for name, values in joined.items()},
        nothing,
        {name: value.tolist() for name, value in calibration.compute().items()},
        data.without_gold,
    )


def batches_of(network: Network, examination: Examination) -> GoldBatches:
    """Return the images as the network sees them."""
    return GoldBatches(
        examination.source,
        network.pipeline,
        examination.numbers,
        batch_size=examination.batch_size,
        seed=examination.seed,
        native=examination.native,
    )


def answers(
    network: Network, batch: GoldBatch, device: torch.device | str, *, native: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Give logits, float32 on the CPU, with gold of their size (255 where nothing counts), several images at once."""
    images = batch.batch
    logits = logits_of(network.module, images.image, device, images.ids)
    if not native:
        yield logits, images.target.masked_fill(~images.valid, IGNORE)
        return
    for one, box, mask in zip(logits, batch.boxes, batch.golds, strict=True):
        yield at_size(one[:, box[0], box[1]], mask.shape), torch.from_numpy(mask)[None]


def logits_of(network: nn.Module, image: Tensor, device: torch.device | str, ids: list[str]) -> Tensor:
    """Return a network's logits as float32 on the CPU; refuse those that are no numbers."""
    network.to(device).eval()
    logits: Tensor = network(as_taken(network, image, device)).float().cpu()
    broken = ~logits.flatten(1).isfinite().all(1)
    if broken.any():
        # NaN > 0 is false: without this, a broken network would pass for one that predicts background.
        name = ids[int(broken.int().argmax())]
        raise ValueError(
            f"Expected finite logits for image {name!r} but the network gives NaN or infinity; its weights are "
            "broken: take those of an earlier step, or train with a lower learning rate."
        )
    return logits


def at_size(logits: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return logits [classes, height, width] as one image of another size [1, classes, *size], smoothly."""
    if logits.shape[1:] == torch.Size(size):
        return logits[None]
    return interpolate(logits[None], size=size, mode="bilinear", align_corners=False, antialias=True)


def as_taken(network: nn.Module, image: Tensor, device: torch.device | str) -> Tensor:
    """Return images on the device in the type of the network's weights, which bf16-true has changed."""
    return image.to(device, next(network.parameters()).dtype)


def _measured(logits: Tensor, gold: Tensor, examination: Examination) -> dict[str, Tensor]:
    return measure_masks(
        predicted_classes(logits),
        gold,
        len(examination.source.classes),
        background=examination.background,
        tolerance=examination.tolerance,
        names=measured_of(examination),
    )


def measured_of(examination: Examination) -> tuple[str, ...]:
    """Return the metrics to measure: those that were asked for, and IoU, which says where there is nothing."""
    return tuple(dict.fromkeys((*examination.metrics, "iou")))


# What a network deserves that rightly finds nothing.
BEST: Mapping[str, float] = dict.fromkeys(MASK_METRICS, 1.0) | dict.fromkeys(("hd95", "components"), 0.0)
# Those that say which of two masks is better; a count of parts too many or too few does not.
DIRECTED = tuple(name for name in MASK_METRICS if HIGHER_IS_BETTER[name] is not None)


def credited(
    name: str, policy: Doubles, reference: Doubles, *, nothing: Flags, reference_nothing: Flags
) -> tuple[Doubles, Doubles]:
    """Return both networks' values of a metric as they are compared.

    Where there is nothing and a network finds nothing, it has no value of its own (NaN). Beside another that invents an
    object there it was right, and has the best value: or inventing would cost nothing, and mending it earn nothing.

    >>> nothing = np.array([True, True]), np.array([False, True])
    >>> policy, reference = np.array([np.nan, np.nan]), np.array([0.0, np.nan])
    >>> credited("iou", policy, reference, nothing=nothing[0], reference_nothing=nothing[1])
    (array([ 1., nan]), array([ 0., nan]))
    """
    ours = np.where(nothing & ~reference_nothing, BEST[name], policy)
    theirs = np.where(reference_nothing & ~nothing, BEST[name], reference)
    return ours, theirs


def of_images(name: str, policy: Measured, reference: Measured) -> tuple[Doubles, Doubles]:
    """Return a metric of each image under both networks, as they are compared."""
    return credited(
        name,
        policy.values[name],
        reference.values[name],
        nothing=np.all(policy.nothing, axis=1),
        reference_nothing=np.all(reference.nothing, axis=1),
    )


def of_class(name: str, number: int, policy: Measured, reference: Measured) -> tuple[Doubles, Doubles]:
    """Return a metric of one class in each image under both networks, as they are compared."""
    return credited(
        name,
        policy.of_classes[name][:, number],
        reference.of_classes[name][:, number],
        nothing=policy.nothing[:, number],
        reference_nothing=reference.nothing[:, number],
    )


def goodness(name: str, values: Doubles) -> Doubles:
    """Return values of a directed metric so that more is better.

    >>> goodness("hd95", np.array([2.0, 1.0]))
    array([-2., -1.])
    """
    return values if HIGHER_IS_BETTER[name] else -values
