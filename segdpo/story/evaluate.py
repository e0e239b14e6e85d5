"""The story of scripts/evaluate.py: any weights, or two, on any data with gold."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from segdpo.checks import check_device, check_range
from segdpo.data.errors import DataError
from segdpo.data.record_source import RecordSource
from segdpo.data.source_argument import source_of
from segdpo.data.splits import Numbers, Splits, infos_of
from segdpo.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from segdpo.metrics.masks import MASK_METRICS
from segdpo.story.configs import MISSING, Plain, build, leaves, plain
from segdpo.story.evaluation import Evaluated, write_evaluation
from segdpo.story.evaluation_config import config_for, run_of
from segdpo.story.evaluation_measure import Examination, Network, measure_network
from segdpo.story.evaluation_pairs import DIRECTED
from segdpo.training.open_run import open_segmenter, weights_path

SPLITS = ("test", "val", "train", "all")
REFERENCE = "reference.safetensors"


@dataclass(frozen=True)
class Request:
    """What was asked for; None: as the run of `model` has it."""

    model: Path
    conf: Path
    against: Path | None = None
    data: str | None = None
    overrides: Sequence[str] = ()
    split: str = "test"
    metrics: Sequence[str] = MASK_METRICS
    out: Path | None = None
    native: bool = False
    tolerance: float = 2.0
    device: str = "cpu"
    trusted: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class Report:
    """Where the evaluation is, what its summary.json says, and what is worth knowing about it."""

    folder: Path
    summary: Plain
    notes: list[str] = field(default_factory=list)


def evaluate(request: Request) -> Report:
    """Measure the network, and the other one beside it; write the folder."""
    if not set(request.metrics) & set(DIRECTED):
        raise ValueError(
            f"Expected one of --metrics to say which mask is better but {', '.join(request.metrics)} does not; add iou."
        )
    check_device("--device", request.device)
    weights_path(request.model)  # a mistyped path is what people want to hear of first
    run = run_of(request.model)
    against = against_of(request)
    out = out_of(request, run)
    own = [one for one in request.overrides if not (request.data and one.startswith("data."))]
    config = config_for(run, own, request.conf, request.trusted)
    check_range("datamodule.batch_size", config.datamodule.batch_size, least=1)
    source = open_data(request, config, run)
    numbers = numbers_of(request.split, config, source)
    networks, notes = {}, []
    for name, path in (("policy", request.model), ("reference", against)):
        if path is not None:
            networks[name], note = open_network(path, config, source, request.trusted)
            notes += note
    examination = Examination(
        source,
        numbers,
        tuple(dict.fromkeys(request.metrics)),
        background=config.background,
        batch_size=config.datamodule.batch_size,
        seed=config.seed,
        tolerance=request.tolerance,
        native=request.native,
    )
    measured = {
        name: measure_network(network, examination, request.device, f"{name} on {request.split}")
        for name, network in networks.items()
    }
    if measured["policy"] is None:
        raise DataError(
            f"Expected gold of the {len(numbers)} images of --split {request.split} but none has any; choose another "
            "split, or data with gold (docs/data.md)."
        )
    evaluated = Evaluated(measured["policy"], measured.get("reference"))
    said: dict[str, Any] = {
        "model": str(request.model),
        "against": None if against is None else str(against),
        "data": request.data,
        "overrides": list(request.overrides),
        "split": request.split,
    }
    return Report(out, write_evaluation(out, evaluated, networks, examination, request.device, said), notes)


def against_of(request: Request) -> Path | None:
    """Return the weights to compare with: those that were given, else the reference of the run's folder, if any."""
    own = request.model / REFERENCE
    return request.against or (own if own.is_file() else None)


def out_of(request: Request, run: Path | None) -> Path:
    """Return where to write; the run's own folder is for its own test images against its own reference."""
    if request.out is not None:
        return request.out
    asked = request.data, request.against, list(request.overrides), request.native, request.split
    if run == request.model and asked == (None, None, [], False, "test"):
        return run / "evaluation"
    raise ValueError(
        "Expected --out FOLDER: RUN/evaluation is kept for the test images of the run itself, as the run saw them, "
        "against its own reference, and this is another evaluation."
    )


def open_data(request: Request, config: DictConfig, run: Path | None) -> RecordSource:
    """Return the records."""
    if request.data is not None:
        if any(one.startswith("data=") for one in request.overrides):
            raise ValueError("Expected --data or data=… but got both; leave one out.")
        return source_of(request.data, [one[5:] for one in request.overrides if one.startswith("data.")])
    if run is None and not any(one.startswith("data=") for one in request.overrides):
        raise ValueError(
            f"{request.model}: Expected --data or data=… since there is no config.yaml of a run beside these weights "
            "that would say which data."
        )
    for name, value in leaves(plain(config.data), "data"):
        if value == MISSING:
            raise ValueError(f"Expected a value for {name} but the configuration has none; set {name}=…")
    source: RecordSource = build(config.data)
    return source


def numbers_of(split: str, config: DictConfig, source: RecordSource) -> Numbers:
    """Return the numbers of a split's images, by the configuration's way of splitting."""
    if split == "all":
        return np.arange(len(source), dtype=np.uint32)
    splits: Splits = build(config.datamodule.split)(infos_of(source))
    numbers: Numbers = getattr(splits, split)
    if not len(numbers):
        raise DataError(f"Expected images in the split {split} but it has none: {splits}. Choose another, or all.")
    return numbers


def open_network(
    path: Path, config: DictConfig, source: RecordSource, trusted: Sequence[str]
) -> tuple[Network, list[str]]:
    """Return the network with the eval pipeline, normalising as the network was trained, and what is odd about it."""
    segmenter, description = open_segmenter(path, trusted=trusted)
    notes = check_classes(path, description["classes"], source.classes)
    node = plain(config.transforms)["eval"]
    mean, std = tuple(description["mean"]), tuple(description["std"])
    said = tuple(node.get("mean", IMAGENET_MEAN)), tuple(node.get("std", IMAGENET_STD))
    pipeline = build(node) if said == (mean, std) else build(node, mean=mean, std=std)
    return Network(segmenter, pipeline, mean, std), notes


def check_classes(path: Path, theirs: Sequence[str], ours: Sequence[str]) -> list[str]:
    """Refuse a network of other classes than the data's; return a note where only the names differ."""
    names, wanted = ", ".join(theirs), ", ".join(ours)
    if len(theirs) != len(ours):
        raise ValueError(
            f"{path}: Expected a network of the data's {len(ours)} classes ({wanted}) but it has {len(theirs)} "
            f"({names}); give the data that this network is for (--data, data=…), or another network."
        )
    if list(theirs) != list(ours) and sorted(theirs) == sorted(ours):
        raise ValueError(
            f"{path}: Expected the classes in the data's order ({wanted}) but the network has them as {names}; reorder "
            "the classes of the data, and map its masks' values accordingly."
        )
    return [] if list(theirs) == list(ours) else [f"{path}: the network says {names}, the data {wanted}"]
