"""A kind of file: how a sample is made, how it is mutated behind its checksums, and how it is read."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from fuzzing.hostile import Hostile

Files = dict[str, bytes]
# Reads the files in the first folder, may write to the second, and returns what it read.
Step = Callable[[Path, Path], str]


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    Args:
        name: as in the table, and in `--case NAME:NUMBER`.
        sample: writes a valid sample into an empty folder; the number makes it another one.
        target: the file of the sample whose bytes are mutated.
        steps: what the tools do with such files, one after the other.
        structured: returns changed files whose checksums fit again, so that what lies behind them is reached.
        checked: the format has a checksum: bytes that changed give an error or the same, nothing else.
        share: how many of the N cases it gets; below 1 for what is slow.
        clean: exceptions of other packages that the commands print as an error.
        any_path: the file may name any path to be read.
    """

    name: str
    sample: Callable[[Path, int], None]
    target: str
    steps: tuple[Step, ...]
    structured: Callable[[Random, Files, Hostile], Files] | None = None
    checked: bool = False
    share: float = 1.0
    clean: tuple[type[BaseException], ...] = ()
    any_path: bool = False


def files_below(folder: Path) -> Files:
    """Return every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }
