"""The one way in and out: how files of a data set are opened, and where files named after data may lie.

A data set may come from anywhere. Its files may be no files at all (a FIFO never ends, a device neither), and its
names may lead out of the folder that they are written to.
"""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from segdpo.data.errors import DataError

# Text becomes Python objects, which take many times its size; images and masks are bounded by their pixels as well.
MAX_TEXT_BYTES = 2**30
MAX_FILE_BYTES = 2**32
# Without O_NONBLOCK, opening a FIFO waits for its writer. Windows has neither of the first two and needs the third.
FLAGS = os.O_RDONLY
for _flag in ("O_NONBLOCK", "O_NOCTTY", "O_BINARY"):
    FLAGS |= getattr(os, _flag, 0)


def open_file(path: Path) -> BinaryIO:
    """Open a regular file for reading; a folder, a FIFO, a device or a link to one is a DataError."""
    try:
        descriptor = os.open(path, FLAGS)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); restore the file, or correct its name.") from error
    except ValueError as error:
        raise DataError(f"{str(path)!r}: cannot be read ({error}); correct the name.") from error
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return open(descriptor, "rb")
    os.close(descriptor)
    raise DataError(f"{path}: cannot be read: Expected a regular file but got a folder, pipe or device; remove it.")


def read_file(path: Path, limit: int = MAX_FILE_BYTES) -> bytes:
    """Return the bytes of a regular file of at most `limit` bytes; anything else is a DataError."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise DataError(f"{path}: Expected at most {limit} bytes but got {size}; split the file.", "size")
        try:
            return file.read(size)
        except (OSError, MemoryError) as error:
            raise DataError(f"{path}: cannot be read ({error or 'too little memory'}); restore the file.") from error


def exists(path: Path) -> bool:
    """Tell whether something is there; a name that the file system cannot hold is not."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def path_inside(folder: Path, *names: str) -> Path:
    """Return the path of `names` in `folder`; one that leaves the folder, by its name or by a link, is a DataError.

    Whatever is written under a name that came with data gets its path here.
    """
    path = folder.joinpath(*names)
    try:
        root, place = folder.resolve(), path.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"{str(path)!r}: cannot be written ({error}); correct the name.", "id") from None
    if root not in place.parents or ".." in path.parts[len(folder.parts) :]:
        raise DataError(
            f"{path}: Expected a path inside {folder} but it leads to {place}; remove '..' from the name, or the link.",
            "id",
        )
    return path
