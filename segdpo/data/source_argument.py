"""The data set that a script's command line names: a path, or a yaml with options after it."""

from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from segdpo.data.errors import DataError
from segdpo.data.open_source import open_source
from segdpo.data.record_source import RecordSource
from segdpo.models.trust import check_resolvers, check_targets


def source_of(path: str, options: list[str]) -> RecordSource:
    """Return the data set at `path`; `options` (key=value) change the keys of a yaml, and are refused for the rest."""
    if Path(path).suffix != ".yaml":
        if options:
            raise DataError(f"Expected options with a .yaml only but got {options[0]!r} after {path}.")
        return open_source(path, channels=None)
    if not Path(path).exists():
        raise DataError(f"{path}: no such file.")
    # The folder of the yaml is a group of the configuration around it: a yaml may name others of that configuration.
    group = Path(path).resolve().parent
    try:
        with initialize_config_dir(str(group.parent), version_base=None):
            config = compose(overrides=[f"+{group.name}={Path(path).stem}", *(_inside(group.name, o) for o in options)])
            content = _filled_in(config, group.name, path)
            return cast(RecordSource, instantiate(content, _convert_="all"))
    except (HydraException, OmegaConfBaseException) as error:
        # Hydra wraps what a target raises; what went wrong with the data says more than where it was called from.
        raise error.__cause__ if isinstance(error.__cause__, DataError) else DataError(f"{path}: {error}") from None


def _filled_in(config: DictConfig, key: str, path: str) -> Any:
    try:
        check_resolvers(config)
        content = OmegaConf.to_container(config[key], resolve=True, throw_on_missing=True)
        check_targets(content)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    return content


def _inside(group: str, option: str) -> str:
    """Return the option as one of the group: key=value, +key=value and ~key alike."""
    sign = option[: len(option) - len(option.lstrip("+~"))]
    return f"{sign}{group}.{option[len(sign) :]}"
