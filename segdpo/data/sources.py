"""Data sets as wholes: open one, take a part of one, join several, copy one as a pack."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, runtime_checkable

from segdpo.data.images import ImageFile
from segdpo.data.record import Record, RecordInfo, RecordSource, info_of
from segdpo.files import DataError, conf_folder

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from segdpo.data.formats.pack import Images

Progress = Callable[[Iterable[Any]], Iterable[Any]]
"""What wraps a loop to show how far it is: `rich.progress.track`, `tqdm`, or `iter` for nothing."""


# The formats import this file, so they are imported where one is opened.


@dataclass(frozen=True, eq=False)
class Opened:
    """A data set, and how it was found.

    Args:
        source: the records.
        options: of the configuration, which name it: data=folder data.root=….
        guessed: all options of a folder that had to be guessed.
        line: what was guessed.
    """

    source: RecordSource
    options: Mapping[str, Any]
    guessed: Mapping[str, Any] | None = None
    line: str = ""


def open_source(path: str | Path, options: Sequence[str] = (), *, channels: int | None = 3) -> RecordSource:
    """Return the data set at `path`; see `find_source`."""
    return find_source(path, options, channels=channels).source


def find_source(path: str | Path, options: Sequence[str] = (), *, channels: int | None = 3) -> Opened:
    """Open the data set at `path`.

    Args:
        path: a pack, a folder with dataset.json, a COCO .json, a data set of Hugging Face, a .yaml of conf/data/ or
            like those, or any other folder of images and masks, whose options are guessed.
        options: key=value, in place of values of the yaml, or of what is guessed of a folder; refused with others.
        channels: 3: grey images become RGB, 1: all become grey, None: as stored; ignored for a yaml.

    Raises:
        DataError: if there is none of these, it cannot be read, or a guess needs an answer.
    """
    path, options = Path(path), [option.removeprefix("data.") for option in options]
    if path.suffix == ".yaml":
        return Opened(_from_yaml(path, options), {"data": path.stem} | _parsed(options, "data."))
    from segdpo.data.formats import folder, hugging_face, pack

    is_pack, is_folder = (path / pack.DESCRIPTION).exists(), folder.is_our_folder(path)
    is_hugging_face = hugging_face.is_hugging_face(path)
    if path.is_dir() and not (is_pack or is_folder or is_hugging_face):
        return _guessed(path, _parsed(options), channels)
    if options:
        raise DataError(
            f"Expected options with a .yaml or a folder of images only but got {options[0]!r} after {path}."
        )
    if path.suffix == ".json":
        from segdpo.data.formats.coco import CocoDataset

        return Opened(CocoDataset(path, channels=channels), {"data": "coco", "data.annotations": str(path)})
    if is_pack:
        return Opened(pack.PackDataset(path, channels), {"data": "pack", "data.path": str(path)})
    if is_folder:
        return Opened(folder.FolderDataset(path, channels), {"data": "folder", "data.root": str(path)})
    if is_hugging_face:
        found = hugging_face.HuggingFaceDataset(path, channels=channels)
        return Opened(found, {"data": "huggingface", "data.path": str(path)})
    raise DataError(
        f"{path}: Expected a folder of images, a pack ({pack.DESCRIPTION}), a folder with {folder.DESCRIPTION}, a COCO "
        ".json or a .yaml of conf/data/ but got none; correct the path."
    )


def _guessed(path: Path, values: Mapping[str, Any], channels: int | None) -> Opened:
    """Open a folder as people have it."""
    from segdpo.data.formats.plain_folder import PlainFolder
    from segdpo.data.guessing.guess import guess

    found = guess(path, values)
    options = {"data": "plain", "data.root": str(path)} | {f"data.{name}": value for name, value in found.plain.items()}
    return Opened(PlainFolder(path, **{**found.options, "channels": channels}), options, found.plain, found.line)


def _parsed(options: Sequence[str], front: str = "") -> dict[str, Any]:
    """Return the values of key=value, as Hydra reads them."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_overrides(list(options))
        return {front + str(one.key_or_group): one.value() for one in parsed}
    except HydraException as error:
        raise DataError(f"Expected options as key=value but got {' '.join(options)}: {error}") from None


def _from_yaml(path: Path, options: Sequence[str]) -> RecordSource:
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from hydra.utils import instantiate
    from omegaconf.errors import OmegaConfBaseException

    from segdpo.data.readiness import override

    if not path.exists():
        raise DataError(f"{path}: no such file.")
    # The folder of the yaml is a group of the configuration around it: a yaml may name others of that configuration,
    # and of ours.
    group, ours = path.resolve().parent, override("hydra.searchpath", [f"file://{conf_folder()}"])
    try:
        with initialize_config_dir(str(group.parent), version_base=None):
            config = compose(
                overrides=[f"+{group.name}={path.stem}", ours, *(_inside(group.name, one) for one in options)]
            )
            return cast(RecordSource, instantiate(_checked_content(config, group.name, path), _convert_="all"))
    except (HydraException, OmegaConfBaseException) as error:
        # Hydra wraps what a target raises; the error in the data is more useful than where it was called from.
        raise error.__cause__ if isinstance(error.__cause__, DataError) else DataError(f"{path}: {error}") from None


def _checked_content(config: "DictConfig", key: str, path: Path) -> Any:
    """Return the values under `key` if they name only what a configuration may build."""
    from omegaconf import OmegaConf

    from segdpo.models import check_resolvers, check_targets

    try:
        check_resolvers(config)
        content = OmegaConf.to_container(config[key], resolve=True, throw_on_missing=True)
        content = check_targets(content)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    return content


def _inside(group: str, option: str) -> str:
    """Return the option as one of the group: key=value, +key=value or ~key."""
    sign = option[: len(option) - len(option.lstrip("+~"))]
    return f"{sign}{group}.{option[len(sign) :]}"


@dataclass(frozen=True, eq=False)
class Subset:
    """The records `numbers` of `source`, in that order."""

    source: RecordSource
    numbers: Sequence[int]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of the source."""
        return self.source.classes

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Record:
        return self.source[int(self.numbers[index])]

    def describe(self, index: int) -> RecordInfo:
        """Return what the source knows of the record."""
        return info_of(self.source, int(self.numbers[index]))


@dataclass(frozen=True, eq=False)
class Joined:
    """The records of the first of `parts`, then those of the second, and so on; all have the same classes."""

    parts: Sequence[RecordSource]

    def __post_init__(self) -> None:
        """Refuse parts of different classes."""
        names = {part.classes for part in self.parts}
        if len(names) != 1:
            raise ValueError(f"Expected data sets of the same classes to join but got {sorted(names) or 'none'}.")

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, the same in all parts."""
        return self.parts[0].classes

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def __getitem__(self, index: int) -> Record:
        part, number = self._place(index)
        return part[number]

    def describe(self, index: int) -> RecordInfo:
        """Return what its part knows of the record."""
        return info_of(*self._place(index))

    def _place(self, index: int) -> tuple[RecordSource, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"Expected a record from 0 to {len(self) - 1} but got {index}.")
        ends = list(accumulate(len(part) for part in self.parts))
        number = bisect_right(ends, index)
        return self.parts[number], index - (ends[number - 1] if number else 0)


@runtime_checkable
class FileSource(RecordSource, Protocol):
    """A data set that can hand out an image's file as it is, so that copying it loses nothing."""

    def image_file(self, index: int, /) -> ImageFile:
        """Return the file of the image of record `index`."""
        ...


def file_of(source: RecordSource, index: int) -> ImageFile | None:
    """Return the file of the image of record `index`, None if the source has no files."""
    return source.image_file(index) if isinstance(source, FileSource) else None


def records_with_files(
    source: RecordSource | Iterable[Record], progress: Progress = iter
) -> Iterator[tuple[Record, ImageFile | None]]:
    """Yield each record and its image's file, None where the source has no files."""
    if isinstance(source, Iterable) and not isinstance(source, FileSource):
        yield from ((record, None) for record in progress(source))
    else:
        for index in progress(range(len(source))):
            yield source[index], file_of(source, index)


def write_pack(
    path: str | Path,
    source: RecordSource,
    records_per_shard: int | None = None,
    images: "Images | None" = None,
    progress: Progress = iter,
) -> None:
    """Write a data set as a pack; an unfinished pack of the same data set is continued."""
    from segdpo.data.formats.pack import PackWriter

    with PackWriter(path, source.classes, records_per_shard, images) as writer:
        ids = [info_of(source, index).id for index in range(len(source))]
        if unknown := sorted(writer.done_ids.difference(ids)):
            writer.close()
            raise DataError(
                f"{path}: Expected an unfinished pack of the same data set but it has {unknown[0]!r}; "
                "remove it or write to another path."
            )
        for index in progress(range(len(source))):
            if ids[index] not in writer.done_ids:
                writer.write(source[index], file_of(source, index))


def write_source(
    path: str | Path,
    source: RecordSource,
    form: str | None = None,
    *,
    manifest: Literal["jsonl", "csv"] | None = None,
    images: "Images | None" = None,
    records_per_shard: int | None = None,
    progress: Progress = iter,
) -> str:
    """Write a data set in one of our formats, and return the format's name.

    Args:
        path: where to write.
        source: the records.
        form: "folder", "pack", "coco" or "datasets" (of Hugging Face); by default, the suffix .pack or .json decides,
            and any other is a folder.
        manifest: of a folder: "jsonl" (the default) or "csv".
        images: of a pack: "files" or "pixels".
        records_per_shard: of a pack.
        progress: wraps the records, for a progress bar.

    Raises:
        DataError: an option belongs to another format, or the records cannot be written.
    """
    from segdpo.data.formats.coco import write_coco
    from segdpo.data.formats.folder import write_folder
    from segdpo.data.formats.hugging_face import write_datasets

    form = form or {".pack": "pack", ".json": "coco"}.get(Path(path).suffix, "folder")
    if (manifest and form != "folder") or ((records_per_shard or images) and form != "pack"):
        raise DataError(
            "Expected --manifest with a folder only, --images and --records-per-shard with a pack only, but "
            f"{path} is a {form}."
        )
    if form == "pack":
        write_pack(path, source, records_per_shard, images, progress)
    elif form == "coco":
        write_coco(path, source, source.classes, progress)
    elif form == "datasets":
        write_datasets(path, source, source.classes, progress)
    else:
        write_folder(path, source, source.classes, manifest or "jsonl", progress)
    return form
