"""pack.json: what all records of a pack have in common, with a checksum."""

import json
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from segdpo.data.arrow_file import atomic
from segdpo.data.errors import DataError
from segdpo.data.files import read_file
from segdpo.data.folder_description import MAX_DESCRIPTION_BYTES, check_version, parse_object
from segdpo.data.names import check_classes

VERSION = 1
DESCRIPTION = "pack.json"
Images = Literal["files", "pixels"]


@dataclass(frozen=True)
class PackSettings:
    """The classes, how many records a shard has, and whether images are kept as files or as pixels."""

    classes: tuple[str, ...]
    records_per_shard: int
    images: Images

    def __post_init__(self) -> None:
        number = self.records_per_shard
        if type(number) is not int or number < 1 or self.images not in ("files", "pixels"):
            raise DataError(
                f"Expected at least 1 record a shard, and images 'files' or 'pixels', but got "
                f"{self.records_per_shard} and {self.images!r}."
            )


def read_settings(path: Path) -> PackSettings:
    """Return the settings of the pack at `path`."""
    name = str(path / DESCRIPTION)
    values = parse_object(read_file(path / DESCRIPTION, MAX_DESCRIPTION_BYTES), name)
    check_version(values.pop("version", None), VERSION, name, "write the pack again with this program.")
    if values.pop("checksum", None) != _checksum(values):
        raise DataError(f"{name}: is damaged (checksum); restore it, or write the pack again.", "damaged")
    if values.keys() != {"classes", "records_per_shard", "images"} or not isinstance(values["classes"], list):
        raise DataError(
            f"{name}: Expected a list of classes, records_per_shard and images but got {values!r:.200}; "
            "write the pack again with this program.",
            "damaged",
        )
    classes = check_classes(values["classes"], f"{name}: ")
    try:
        return PackSettings(classes, values["records_per_shard"], values["images"])
    except DataError as error:
        raise DataError(f"{name}: {error}", "damaged") from None


def write_settings(path: Path, settings: PackSettings) -> None:
    """Write the settings into the pack at `path`."""
    values = {**asdict(settings), "classes": list(settings.classes)}
    text = json.dumps({"version": VERSION, **values, "checksum": _checksum(values)}, ensure_ascii=False, indent=1)
    with atomic(path / DESCRIPTION) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _checksum(values: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(values, sort_keys=True).encode()):08x}"
