"""Evaluate any weights, or two, on any data with gold."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from segdpo.checks import check_device, check_range
from segdpo.data import Numbers, RecordSource, Splits, infos_of, open_source
from segdpo.files import DataError
from segdpo.inference import open_segmenter, weights_path
from segdpo.metrics import MASK_METRICS
from segdpo.models import EVALUATION, IMAGENET_MEAN, IMAGENET_STD, check_resolvers, checked
from segdpo.recipes.config import MISSING, Plain, build, leaves, plain, read_config
from segdpo.recipes.evaluation import Evaluated, write_evaluation
from segdpo.recipes.measure import DIRECTED, Examination, Network, measure_network

# The group of each node that may be chosen anew, and the other values that count.
GROUPS = {"data": "data", "transforms": "transforms", "datamodule/split": "datamodule.split"}
VALUES = ("background", "datamodule.batch_size")
# What an evaluation builds of a run's config.yaml.
BUILT = ("data", "transforms.eval", "datamodule.split")


def run_of(path: Path) -> Path | None:
    """Return the folder of the run that a folder or a file of weights is in; None if there is none."""
    places = [path] if path.is_dir() else [path.parent, path.parent.parent]
    return next((place for place in places if (place / "config.yaml").is_file()), None)


def config_for(run: Path | None, overrides: Sequence[str], conf: Path, trusted: Sequence[str] = ()) -> DictConfig:
    """Return a configuration with data, transforms, datamodule, background and seed.

    That of the run as it was, every value filled in, or, without a run, conf/train.yaml. `overrides` are Hydra's:
    key=value, and group=choice, which takes the group anew from `conf`.
    """
    for override in overrides:
        _check_counts(override)
    if run is None:
        return _composed(conf, overrides)
    config = _read(run / "config.yaml", trusted)
    rest = list(overrides)
    for group, key in GROUPS.items():
        own = [one for one in overrides if _key(one) == group or _key(one).startswith(f"{key}.")]
        if any(_key(one) == group for one in own):
            OmegaConf.update(config, key, plain(OmegaConf.select(_composed(conf, own), key)), merge=False)
            rest = [one for one in rest if one not in own]
    for override in rest:
        _change(config, override)
    return config


def _read(path: Path, trusted: Sequence[str]) -> DictConfig:
    config = OmegaConf.create(read_config(path))
    needed = ("background", "seed", "datamodule.batch_size", *BUILT)
    missing = [name for name in needed if OmegaConf.select(config, name) is None]
    if missing:
        raise ValueError(f"{path}: Expected the configuration of a run but {', '.join(missing)} is missing.")
    for name in BUILT:
        node = checked(plain(OmegaConf.select(config, name)), path, name, table=EVALUATION, trusted=trusted)
        OmegaConf.update(config, name, node, merge=False)
    return config


def _composed(conf: Path, overrides: Sequence[str]) -> DictConfig:
    with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
        config = compose("train", overrides=list(overrides))
    check_resolvers(config)
    return config


def _key(override: str) -> str:
    return override.lstrip("+").partition("=")[0]


def _check_counts(override: str) -> None:
    key, sign, _ = override.partition("=")
    key = key.lstrip("+")
    parts = (*(f"{node}." for node in GROUPS.values()), *GROUPS, *VALUES)
    if not sign or not any(key == part or (part.endswith(".") and key.startswith(part)) for part in parts):
        raise ValueError(
            f"Expected key=value of {', '.join(GROUPS)}, {', '.join(VALUES)} but got {override!r}; an evaluation takes "
            "nothing else from the configuration."
        )


def _change(config: DictConfig, override: str) -> None:
    """Change a value of a run's configuration, in which every ${…} is filled in already."""
    key = _key(override)
    value = OmegaConf.from_dotlist([f"value={override.partition('=')[2]}"]).value
    group = next((group for group, node in GROUPS.items() if key.startswith(f"{node}.")), None)
    if key.startswith("transforms.") and not key.startswith("transforms.eval."):
        raise ValueError(
            f"Expected {key} under transforms.eval, all that is used here, or a choice of the group beside it but got "
            f"{override!r} alone; write transforms=NAME {override}."
        )
    parent = key.rpartition(".")[0]
    there = OmegaConf.select(config, parent) if parent else config
    if not override.startswith("+") and (there is None or OmegaConf.select(config, key, default=config) is config):
        has = ", ".join(sorted(str(one) for one in there)) if isinstance(there, DictConfig) else "nothing of that name"
        choose = f", or choose {group}=NAME anew" if group else ""
        raise ValueError(f"The run has no {key}: {parent} has {has}; to add it, write +{override}{choose}.")
    OmegaConf.update(config, key, value, merge=False, force_add=True)


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


def evaluate_weights(request: Request) -> Report:
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
        options = [one[5:] for one in request.overrides if one.startswith("data.")]
        return open_source(request.data, options, channels=None)
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
