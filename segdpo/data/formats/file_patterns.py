"""Names of files: which files of a folder belong together, and the id that each has.

`*` stands for a name and `**` for any folders, as in the shell; what they match, joined by "/", is the id. A pattern
without a star is a folder: `images` means `images/**/*`. Without a suffix, any suffix that can be read matches.
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from segdpo.data.images import SUFFIXES
from segdpo.files import DataError

MAX_FILES = 2_000_000
SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
MASK_SUFFIXES = (*SUFFIXES, ".npy", ".npz", ".txt")
CLASS_FILES = (
    *(
        "labelmap.txt",
        "label_map.txt",
        "classes.txt",
        "classes.json",
        "class_dict.csv",
        "label_colors.txt",
        "labels.txt",
    ),
    *("label_names.txt", "obj.names", "data.yaml", "dataset.yaml", "notes.json"),
)


@dataclass(frozen=True)
class FilePattern:
    """Names of files, such as `masks`, `**/*_mask.png` or `*/images/*`.

    Args:
        text: the pattern.
        suffixes: what may follow if the pattern ends in none of them.
    """

    text: str
    suffixes: Sequence[str]

    @property
    def parts(self) -> list[str]:
        """The pattern's folders and its name."""
        if "*" in self.text:
            return self.text.split("/")
        folder = self.text.strip("/")
        return [*(folder.split("/") if folder not in ("", ".") else []), "**", "*"]

    @property
    def folder(self) -> str:
        """The folders before the first star, "" for none."""
        parts = self.parts
        return "/".join(parts[: next(k for k, part in enumerate(parts) if "*" in part)])

    @property
    def has_suffix(self) -> bool:
        """Whether the pattern says itself which suffix its files have."""
        return self.text.lower().endswith(tuple(self.suffixes))

    def matching(self, files: Iterable[str]) -> set[str]:
        """Return the files that match."""
        regex = self._regex()
        return {path for path in files if regex.fullmatch(path)}

    def ids(self, files: Iterable[str]) -> dict[str, str]:
        """Return the files that match, by id.

        Raises:
            DataError: two files have the same id.
        """
        found: dict[str, str] = {}
        regex = self._regex()
        for path in files:
            if match := regex.fullmatch(path):
                name = "/".join(part.strip("/") for part in match.groups() if part)
                if name in found:
                    raise DataError(
                        f"{path}: Expected one file an id for {self.text!r} but {found[name]} has the id {name!r} too; "
                        "remove one, or name the suffix in the pattern.",
                        "id",
                    )
                found[name] = path
        return found

    def find(self, root: Path) -> dict[str, str]:
        """Return the files below `root` that match, by id, in the order of their names."""
        return self.ids(self.list(root))

    def list(self, root: Path) -> "list[str]":
        """Return the files below `root` that lie as deep as those that match, as paths in it."""
        start = root / self.folder
        if not start.is_dir():
            raise DataError(f"{start}: no such folder; see `root`, `images`, `masks` and `gold`.")
        front = f"{self.folder}/" if self.folder else ""
        parts = self.parts[self.folder.count("/") + bool(self.folder) :]
        depth = None if "**" in parts else len(parts) - 1
        return [front + path for path in list_files(start, depth)]

    def _regex(self) -> re.Pattern[str]:
        text = "/".join(self.parts)
        pieces = re.split(r"(\*\*/|\*)", text)
        stars = {"**/": r"((?:[^/]+/)*)", "*": r"([^/]+?)"}
        pattern = "".join(stars.get(piece) or re.escape(piece) for piece in pieces)
        any_suffix = "" if self.has_suffix else f"(?:{'|'.join(map(re.escape, self.suffixes))})"
        return re.compile(f"{pattern}(?i:{any_suffix})")


def list_files(folder: Path, depth: int | None = None) -> list[str]:
    """Return the files in a folder and the folders in it, in the order of their names; hidden ones are left out.

    Args:
        folder: the folder. Links to folders are followed in it, but not further down.
        depth: how many folders deep; None: all.
    """
    found: list[str] = []
    waiting = [""]
    while waiting:
        front = waiting.pop()
        try:
            with os.scandir(folder / front) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if not entry.is_dir(follow_symlinks=not front):
                        found.append(front + entry.name)
                    elif depth is None or front.count("/") < depth:
                        waiting.append(f"{front}{entry.name}/")
        except OSError as error:
            raise DataError(f"{folder / front}: cannot be read ({error.strerror}); correct the name.") from error
        if len(found) > MAX_FILES:
            raise DataError(f"{folder}: Expected at most {MAX_FILES} files; name a folder of images alone.", "size")
    return sorted(found, key=lambda path: path.split("/"))


def names_classes(path: str) -> bool:
    """Return whether a file names classes, and is none of a mask."""
    return path.rpartition("/")[2].lower() in (*CLASS_FILES, "readme.txt")
