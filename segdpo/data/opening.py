"""Open a data set from a path or a yaml, and copy it as a pack."""

from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from segdpo.data.formats.coco import CocoDataset
from segdpo.data.formats.folder import DESCRIPTION as FOLDER
from segdpo.data.formats.folder import FolderDataset
from segdpo.data.formats.pack import DESCRIPTION as PACK
from segdpo.data.formats.pack import Images, PackDataset, PackWriter
from segdpo.data.record import RecordSource, info_of
from segdpo.data.sources import Progress, file_of
from segdpo.files import DataError
from segdpo.models import check_resolvers, check_targets


def open_source(path: str | Path, channels: int | None = 3) -> RecordSource:
    """Return the data set at `path`: a pack, a folder with dataset.json, or a COCO file."""
    path = Path(path)
    if path.suffix == ".json":
        return CocoDataset(path, channels=channels)
    if (path / PACK).exists():
        return PackDataset(path, channels)
    if (path / FOLDER).exists():
        return FolderDataset(path, channels)
    raise DataError(
        f"{path}: Expected a pack ({PACK}), a folder with {FOLDER}, a COCO .json or a .yaml of conf/data/ but got "
        f"{'another folder; try conf/data/plain.yaml root=' + str(path) if path.is_dir() else 'none of them'}."
    )


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


def write_pack(
    path: str | Path,
    source: RecordSource,
    records_per_shard: int | None = None,
    images: Images | None = None,
    progress: Progress = iter,
) -> None:
    """Write a data set as a pack; an unfinished pack of the same data set is gone on with."""
    with PackWriter(path, source.classes, records_per_shard, images) as writer:
        ids = [info_of(source, index).id for index in range(len(source))]
        if strange := sorted(writer.done_ids.difference(ids)):
            writer.close()
            raise DataError(
                f"{path}: Expected an unfinished pack of the same data set but it has {strange[0]!r}; "
                "remove it or write to another path."
            )
        for index in progress(range(len(source))):
            if ids[index] not in writer.done_ids:
                writer.write(source[index], file_of(source, index))
