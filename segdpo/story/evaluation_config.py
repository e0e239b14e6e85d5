"""What an evaluation takes from a configuration: data, eval transforms, split; a run's own, changed as asked."""

from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from segdpo.models.trust import EVALUATION, check_resolvers, checked
from segdpo.story.configs import plain, read_config

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
