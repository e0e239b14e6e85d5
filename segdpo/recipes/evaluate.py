"""Evaluating weights: one network, or two, on any data with gold masks."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from segdpo.checks import check_device
from segdpo.data import Numbers, Preparation, RecordSource, Splits, infos_of, open_source
from segdpo.files import DataError
from segdpo.inference import open_segmenter, preparation_for
from segdpo.metrics import MASK_METRICS
from segdpo.models import EVALUATION, check_resolvers, checked, weights_path
from segdpo.preferences import Network, check_windows
from segdpo.recipes.config import MISSING, Plain, build, leaves, plain, read_config
from segdpo.recipes.evaluation import Evaluation, write_evaluation
from segdpo.recipes.keep import TRAINED
from segdpo.recipes.measure import DIRECTED, Measurement, measure_network
from segdpo.recipes.run import preparation_of
from segdpo.renamed import ADDED_OPTIONS, current_words

log = logging.getLogger(__name__)

SPLITS = ("test", "val", "train", "all")
REFERENCE = "reference.safetensors"
# The groups that may be chosen again, with their keys, and the other values that an evaluation uses.
GROUPS = {"data": "data", "transforms": "transforms", "datamodule/split": "datamodule.split"}
VALUES = ("background", "measured_at")
# What is built from a run's config.yaml.
BUILT = ("data", "transforms.eval", "datamodule.split")


@dataclass(frozen=True)
class Request:
    """An evaluation; None: as the run of `model` has it.

    Attributes:
        model: a run's folder, a .safetensors or a .ckpt.
        conf: the configuration folder.
        against: the network to compare with.
        data: a .yaml, a folder, a pack or a COCO file.
        overrides: key=value of data, transforms, datamodule.split, background and measured_at.
        split: the images, one of `SPLITS`.
        metrics: names of `MASK_METRICS`.
        out: the folder to write.
        native: show the networks images at their own size, in windows, instead of as in their training.
        window: side of the windows; None: as in training, or 512 with `native`.
        tolerance: that of surface Dice, in pixels.
        device: where the networks run.
        trusted: packages whose functions the run's configuration may name.
    """

    model: Path
    conf: Path
    against: Path | None = None
    data: str | None = None
    overrides: Sequence[str] = ()
    split: str = "test"
    metrics: Sequence[str] = MASK_METRICS
    out: Path | None = None
    native: bool = False
    window: int | None = None
    tolerance: float = 2.0
    device: str = "cpu"
    trusted: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class Report:
    """The folder that was written, the content of its summary.json, remarks, and how images were prepared, in words."""

    folder: Path
    summary: Plain
    notes: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)


def evaluate_weights(request: Request) -> Report:
    """Measure the network, and the one to compare with if there is one, and write the folder.

    Raises:
        ValueError: the request does not fit the run, the network or the data.
    """
    if not set(request.metrics) & set(DIRECTED):
        raise ValueError(
            f"Expected one of --metrics to say which mask is better but {', '.join(request.metrics)} does not; add iou."
        )
    check_device("--device", request.device)
    check_windows(request.window)
    weights_path(request.model)  # a mistyped path is reported first
    run = run_of(request.model)
    against = _against(request)
    out = _out(request, run)
    own = [one for one in request.overrides if not (request.data and one.startswith("data."))]
    config = config_for(run, own, request.conf, request.trusted)
    source = _open_data(request, config, run)
    numbers = images_of_split(request.split, config, source)
    networks, notes = {}, _kept_reference(request.model)
    for name, path in (("policy", request.model), ("reference", against)):
        if path is not None:
            networks[name], note = _open_network(path, config, source, request)
            notes += note
    measurement = Measurement(
        source,
        numbers,
        tuple(dict.fromkeys(request.metrics)),
        background=config.background,
        seed=config.seed,
        tolerance=request.tolerance,
        measured_at="image" if request.native else config.measured_at,
    )
    measured = {
        name: measure_network(network, measurement, f"{name} on {request.split}") for name, network in networks.items()
    }
    if measured["policy"] is None:
        raise DataError(
            f"Expected gold of the {len(numbers)} images of --split {request.split} but none has any; choose another "
            "split, or data with gold (docs/data.md)."
        )
    said = _said(networks, measurement, native=request.native)
    evaluation = Evaluation(measured["policy"], measured.get("reference"))
    inputs: Plain = {
        "model": str(request.model),
        "against": None if against is None else str(against),
        "data": request.data,
        "overrides": list(request.overrides),
        "split": request.split,
        "native": request.native,
    }
    return Report(out, write_evaluation(out, evaluation, networks, measurement, inputs), notes, said)


def _said(networks: Mapping[str, Network], measurement: Measurement, *, native: bool) -> list[str]:
    """Return a line that says how images were prepared; one a network if they differ."""
    at_view = measurement.measured_at == "view"
    lines = {
        name: f"as trained: {one.preparation.words}, measured at that size (measured_at=view)"
        if at_view
        else one.preparation.line(native=native)
        for name, one in networks.items()
    }
    return [lines["policy"]] if len(set(lines.values())) == 1 else [f"{name} {line}" for name, line in lines.items()]


def run_of(path: Path) -> Path | None:
    """Return the folder of the run that a folder or a file of weights belongs to; None if there is none."""
    places = [path] if path.is_dir() else [path.parent, path.parent.parent]
    return next((place for place in places if (place / "config.yaml").is_file()), None)


def config_for(run: Path | None, overrides: Sequence[str], conf: Path, trusted: Sequence[str] = ()) -> DictConfig:
    """Return a configuration with data, transforms, datamodule, background and seed.

    Args:
        run: the folder of a run, whose config.yaml is used; None: conf/train.yaml.
        overrides: Hydra's key=value, and group=choice, which takes the group from `conf` instead of the run.
        conf: the configuration folder.
        trusted: packages whose functions the run's configuration may name.
    """
    overrides = [one for one in current_words(overrides) if _counts(one)]
    if run is None:
        return _compose(conf, overrides)
    config = _read(run / "config.yaml", trusted)
    rest = list(overrides)
    for group, key in GROUPS.items():
        own = [one for one in overrides if _key(one) == group or _key(one).startswith(f"{key}.")]
        if any(_key(one) == group for one in own):
            OmegaConf.update(config, key, plain(OmegaConf.select(_compose(conf, own), key)), merge=False)
            rest = [one for one in rest if one not in own]
    for override in rest:
        _change(config, override)
    return config


def _read(path: Path, trusted: Sequence[str]) -> DictConfig:
    """Return the configuration of a run, with what is built of it checked."""
    config = OmegaConf.create(read_config(path))
    needed = ("background", "seed", *BUILT)
    missing = [name for name in needed if OmegaConf.select(config, name) is None]
    if missing:
        raise ValueError(f"{path}: Expected the configuration of a run but {', '.join(missing)} is missing.")
    for name in BUILT:
        node = checked(plain(OmegaConf.select(config, name)), path, name, table=EVALUATION, trusted=trusted)
        if not isinstance(node, dict) or "_target_" not in node:
            raise ValueError(f"{path}: Expected {name} to name what builds it (_target_) but got {node!r:.200}.")
        OmegaConf.update(config, name, node, merge=False)
    # Runs of earlier versions measured at the size of their views.
    config.setdefault("measured_at", ADDED_OPTIONS["measured_at"])
    return config


def _compose(conf: Path, overrides: Sequence[str]) -> DictConfig:
    with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
        config = compose("train", overrides=list(overrides))
    check_resolvers(config)
    return config


def _key(override: str) -> str:
    return override.lstrip("+").partition("=")[0]


def _counts(override: str) -> bool:
    """Refuse an override that has no effect on an evaluation, apart from one that had an effect once."""
    key, sign, _ = override.partition("=")
    key = key.lstrip("+")
    if sign and key == "datamodule.batch_size":
        log.warning("The option %s is ignored: images are predicted one at a time.", override)
        return False
    parts = (*(f"{node}." for node in GROUPS.values()), *GROUPS, *VALUES)
    if not sign or not any(key == part or (part.endswith(".") and key.startswith(part)) for part in parts):
        raise ValueError(
            f"Expected key=value of {', '.join(GROUPS)}, {', '.join(VALUES)} but got {override!r}; an evaluation uses "
            "nothing else from the configuration."
        )
    return True


def _change(config: DictConfig, override: str) -> None:
    """Change a value of a run's configuration, in which every ${…} has been replaced by its value."""
    key = _key(override)
    value = OmegaConf.from_dotlist([f"value={override.partition('=')[2]}"]).value
    group = next((group for group, node in GROUPS.items() if key.startswith(f"{node}.")), None)
    if key.startswith("transforms.") and not key.startswith(("transforms.eval.", "transforms.window")):
        raise ValueError(
            f"Expected {key} under transforms.eval, or transforms.window, all that is used here, or a choice of the "
            "group beside it but got "
            f"{override!r} alone; write transforms=NAME {override}."
        )
    parent = key.rpartition(".")[0]
    there = OmegaConf.select(config, parent) if parent else config
    if not override.startswith("+") and (there is None or OmegaConf.select(config, key, default=config) is config):
        has = ", ".join(sorted(str(one) for one in there)) if isinstance(there, DictConfig) else "nothing of that name"
        choose = f", or choose {group}=NAME again" if group else ""
        raise ValueError(f"The run has no {key}: {parent} has {has}; to add it, write +{override}{choose}.")
    OmegaConf.update(config, key, value, merge=False, force_add=True)


def _against(request: Request) -> Path | None:
    """Return the weights to compare with: the given ones, or the reference in the run's folder if there is one."""
    own = request.model / REFERENCE
    return request.against or (own if own.is_file() else None)


def _kept_reference(model: Path) -> list[str]:
    """Return a remark on a run whose policy.safetensors is its reference."""
    trained = model / TRAINED
    if not trained.is_file():
        return []
    command = f"segdpo evaluate {trained} --against {model / REFERENCE} --out FOLDER"
    return [f"the policy of this run is its reference, which the safety rule kept; the trained policy: {command}"]


def _out(request: Request, run: Path | None) -> Path:
    """Return the folder to write; RUN/evaluation only for the run's own test images, policy and reference."""
    if request.out is not None:
        return request.out
    asked = request.data, request.against, list(request.overrides), request.native, request.window, request.split
    if run == request.model and asked == (None, None, [], False, None, "test"):
        return run / ("evaluation_kept" if (run / TRAINED).is_file() else "evaluation")
    raise ValueError(
        "Expected --out FOLDER: RUN/evaluation is kept for the test images of the run as the run evaluates them, "
        "compared with its own reference, and this is another evaluation."
    )


def _open_data(request: Request, config: DictConfig, run: Path | None) -> RecordSource:
    if request.data is not None:
        if any(one.startswith("data=") for one in request.overrides):
            raise ValueError("Expected --data or data=… but got both; leave one out.")
        options = [one[5:] for one in request.overrides if one.startswith("data.")]
        return open_source(request.data, options, channels=None)
    if run is None and not any(one.startswith("data=") for one in request.overrides):
        raise ValueError(
            f"{request.model}: Expected --data or data=… since there is no config.yaml of a run beside these weights "
            "that names the data."
        )
    for name, value in leaves(plain(config.data), "data"):
        if value == MISSING:
            raise ValueError(f"Expected a value for {name} but the configuration has none; set {name}=…")
    source: RecordSource = build(config.data)
    return source


def images_of_split(split: str, config: DictConfig, source: RecordSource) -> Numbers:
    """Return the numbers of a split's images, as the configuration splits the data."""
    if split == "all":
        return np.arange(len(source), dtype=np.uint32)
    splits: Splits = build(config.datamodule.split)(infos_of(source))
    numbers: Numbers = getattr(splits, split)
    if not len(numbers):
        raise DataError(f"Expected images in the split {split} but it has none: {splits}. Choose another, or all.")
    return numbers


def _open_network(path: Path, config: DictConfig, source: RecordSource, request: Request) -> tuple[Network, list[str]]:
    """Return the network, which sees images as in its training unless the request says otherwise, and remarks."""
    segmenter, description = open_segmenter(path, trusted=request.trusted)
    notes = check_classes(path, description["classes"], source.classes)
    trained = description["preparation"]
    if any(_key(one).partition(".")[0] == "transforms" for one in current_words(request.overrides)):
        trained = _with_views_of(config, trained)
    elif trained.node is None and run_of(path) is not None:
        trained = _with_views_of(config, trained)
        notes.append(
            f"{path}: an earlier version wrote it, without saying how images were prepared: transforms.eval "
            "of the run's config.yaml is used"
        )
    preparation = preparation_for(trained, native=request.native, window=request.window)
    return Network(segmenter, preparation, request.device), notes


def _with_views_of(config: DictConfig, trained: Preparation) -> Preparation:
    """Return a preparation with the views of a configuration, normalising as in the network's training."""
    asked = preparation_of(config)
    views = {"mean": list(trained.views.mean), "std": list(trained.views.std)}
    node = {**(asked.node or {}), **views}
    return replace(trained, views=build(node), window=asked.window, node=node)


def check_classes(path: Path, network: Sequence[str], data: Sequence[str]) -> list[str]:
    """Refuse a network of other classes than the data's; return a remark where only the names differ."""
    theirs, ours = ", ".join(network), ", ".join(data)
    if len(network) != len(data):
        raise ValueError(
            f"{path}: Expected a network of the data's {len(data)} classes ({ours}) but it has {len(network)} "
            f"({theirs}); give the data that this network is for (--data, data=…), or another network."
        )
    if list(network) != list(data) and sorted(network) == sorted(data):
        raise ValueError(
            f"{path}: Expected the classes in the data's order ({ours}) but the network has them as {theirs}; reorder "
            "the classes of the data, and map the values of its masks accordingly."
        )
    return [] if list(network) == list(data) else [f"{path}: the network's classes are {theirs}, the data's {ours}"]
