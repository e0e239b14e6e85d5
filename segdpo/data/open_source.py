"""From a path to the data set that lies there, whatever its form."""

from pathlib import Path

from segdpo.data.coco import CocoDataset
from segdpo.data.errors import DataError
from segdpo.data.folder import FolderDataset
from segdpo.data.folder_description import DESCRIPTION as FOLDER
from segdpo.data.pack import PackDataset
from segdpo.data.pack_settings import DESCRIPTION as PACK
from segdpo.data.record_source import RecordSource


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
