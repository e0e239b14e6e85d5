"""The folder of the cache: one process at a time makes what is missing, and the folder may be another user's."""

import errno
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from segdpo.files import exists, remove_unfinished, write_atomically

log = logging.getLogger(__name__)

Found = TypeVar("Found")
NOT_OURS = (errno.EACCES, errno.EPERM, errno.EROFS)


def made_once(
    path: Path, read: Callable[[], Found | None], make: Callable[[], Found], pack: Callable[[Found], bytes]
) -> Found:
    """Return what a file holds; where there is none, make it and keep it, in one process at a time for each folder.

    Where this user may not write, it is made and not kept.

    Args:
        path: the file.
        read: returns its content; None if it is missing or damaged.
        make: makes what is missing.
        pack: returns it as bytes.
    """
    before = time_of(path)
    if (found := read()) is not None:
        return found
    with held(path.parent, path.parent) as writable:
        # Another job may have made it since.
        if time_of(path) != before and (found := read()) is not None:
            return found
        made = make()
        if writable:
            # What is lost in a power failure is made again.
            write_atomically(path, pack(made), durable=False)
    return made


@contextmanager
def held(what: Path, folder: Path) -> Iterator[bool]:
    """Hold a file or folder of the cache, waiting for other processes; yield whether this user may write there.

    Args:
        what: the file or folder; its lock lies beside it.
        folder: that is written to.
    """
    lock = FileLock(f"{what}.lock", mode=0o666)  # for other users too, where the folder around it is theirs as well
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        writable = os.access(folder, os.W_OK)
    except NotImplementedError:  # a file system without locks
        writable = os.access(folder, os.W_OK)
    except OSError as error:
        if error.errno not in NOT_OURS:
            raise
        writable = False
    try:
        _tidy(folder) if writable else _say(folder)
        yield writable
    finally:
        lock.release()


def time_of(path: Path) -> int | None:
    """Return when a file was written; None: there is none."""
    return path.stat().st_mtime_ns if exists(path) else None


@cache
def _say(folder: Path) -> None:
    """Say, once, that this user may only read."""
    log.warning("%s may not be written to: what it has is used, and what is missing is not kept there.", folder)


@cache
def _tidy(folder: Path) -> None:
    """Remove, once, what killed processes left."""
    remove_unfinished(folder)
