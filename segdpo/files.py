"""Reading regular files of bounded size, writing files atomically, paths that stay inside a folder, and conf/."""

import contextlib
import errno
import glob
import io
import json
import math
import os
import platform
import re
import secrets
import stat
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

# Text becomes Python objects, which take many times its size; images and masks are bounded by their pixels as well.
MAX_TEXT_BYTES = 2**30
MAX_FILE_BYTES = 2**32
MAX_ARRAY_BYTES = 2**30
NPY_SIGNATURE = b"\x93NUMPY"
# In the names of unfinished files: the machine and the process that write them. Earlier versions named no machine.
HOST = f"{zlib.crc32(platform.node().encode()):08x}"
UNFINISHED = re.compile(r"\..+\.(?:(?P<host>[0-9a-f]{8})-)?(?P<process>\d+)-[0-9a-f]{8}\.tmp")
DAY, STARTED = 24 * 3600.0, time.time()
# Without O_NONBLOCK, opening a FIFO waits for its writer. Windows has neither of the first two and needs the third.
FLAGS = os.O_RDONLY
for _flag in ("O_NONBLOCK", "O_NOCTTY", "O_BINARY"):
    FLAGS |= getattr(os, _flag, 0)


class DataError(ValueError):
    """Data that is damaged, missing or invalid; the message names the file, line or id, and how to fix it.

    Args:
        message: the message.
        kind: a short word that reports count by: "unreadable", "size", "class", "mask format", "id", "manifest",
            "preference", "damaged", "version".
    """

    def __init__(self, message: str, kind: str = "unreadable"):
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type["DataError"], tuple[str, str]]:
        # Workers of a DataLoader send their errors pickled, with their kind.
        return type(self), (str(self), self.kind)


def raise_all(errors: list[DataError]) -> None:
    """Raise one error that lists all errors; do nothing if there are none."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise DataError("; ".join(str(error) for error in errors), errors[0].kind)


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


def read_arrays(path: Path, limit: int = MAX_ARRAY_BYTES) -> dict[str, NDArray[Any]]:
    """Return the arrays of a .npz file by name; see `decode_arrays`."""
    return decode_arrays(read_file(path, limit), str(path), limit)


def encode_arrays(**arrays: NDArray[Any]) -> bytes:
    """Return the bytes of a compressed .npz file with these arrays; `decode_arrays` reads them."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def decode_arrays(data: bytes, name: str, limit: int = MAX_ARRAY_BYTES) -> dict[str, NDArray[Any]]:
    """Return the arrays in the bytes of a .npz file by name, or the one of a .npy file as {"": array}.

    NumPy's own reader allocates what the header of an array asks for, and raises a dozen kinds of errors. Pickled
    objects are refused.

    Args:
        data: what `np.save`, `np.savez` or `np.savez_compressed` wrote.
        name: what error messages call it.
        limit: bytes that all of its arrays together may take.

    Raises:
        DataError: if it is damaged, holds objects, or is too large.
    """
    try:
        if len(data) > limit:
            raise ValueError(f"it takes more than {limit} bytes")
        if data.startswith(NPY_SIGNATURE):
            return {"": _read_array(io.BytesIO(data))}
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            # The end of a file that NumPy writes has their number; of two records in one, zipfile sees the first.
            if len(members) != int.from_bytes(data[-12:-10], "little"):
                raise ValueError(f"it has {len(members)} readable arrays")
            if sum(member.file_size for member in members) > limit:
                raise ValueError(f"its arrays take more than {limit} bytes")
            return {member.filename.removesuffix(".npy"): _unpack_array(archive, member) for member in members}
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"{name}: Expected arrays but the file is damaged ({reason}); remove it.", "damaged") from error


def decode_text(data: bytes, name: str) -> str:
    """Return UTF-8 text."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: Expected UTF-8 but got {error}; save it as UTF-8.", "manifest") from None


def parse_json(data: bytes, name: str) -> Any:
    """Return the value of a JSON text of at most MAX_TEXT_BYTES."""
    if len(data) > MAX_TEXT_BYTES:
        raise DataError(f"{name}: Expected at most {MAX_TEXT_BYTES} bytes but got {len(data)}; split the file.", "size")
    text = decode_text(data, name)
    try:
        return json.loads(text)
    except (ValueError, RecursionError, MemoryError) as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"{name}: Expected JSON but got {reason}; correct the file.", "manifest") from None


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


def write_atomically(path: str | Path, *content: bytes | memoryview, durable: bool = True) -> None:
    """Write a file beside `path` and rename it to `path`; if anything fails, the file that was there stays as it was.

    Args:
        path: the file; its folder is made if it is missing.
        content: the parts of the file, in order.
        durable: wait until the file and its name are on the disk, so that they survive a power failure.

    Raises:
        OSError: the file cannot be written; the message says how much room it needs.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{HOST}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            for part in content:
                file.write(part)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, _explain(path, sum(map(len, content)), error)) from error
    finally:
        # After Ctrl-C too; after a success no file has this name.
        with contextlib.suppress(OSError):
            temporary.unlink()
    if durable:
        _sync_folder(path.parent)


def remove_unfinished(folder: Path, name: str | None = None) -> None:
    """Remove what processes left in the folder that were killed while they wrote the file `name` (None: any file).

    What a process of this machine writes is left alone while it runs, and that of another machine for a day.
    """
    for left in folder.glob(f".{'*' if name is None else glob.escape(name)}.*.tmp"):
        with contextlib.suppress(OSError):
            found = UNFINISHED.fullmatch(left.name)
            written = left.stat().st_mtime
            if found and (_has_ended(found, written) or time.time() - written > DAY):
                left.unlink()


def _has_ended(found: re.Match[str], written: float) -> bool:
    """Return whether the process that wrote a file is known to have ended; containers use the same numbers again."""
    process = int(found["process"])
    if found["host"] != HOST or os.name != "posix":
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:  # of another user
        return False
    return process == os.getpid() and written < STARTED


def exists(path: Path) -> bool:
    """Return whether the path exists; one that the file system cannot hold does not."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def path_inside(folder: Path, *names: str) -> Path:
    """Return the path of `names` in `folder`; one that leaves the folder, by its name or by a link, is a DataError.

    Use it for every file that is written under a name from a data set.
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


def _unpack_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    with archive.open(member) as file:
        # With a size, no more than that is decompressed, whatever the member holds.
        return _read_array(io.BytesIO(file.read(member.file_size)))


def _read_array(content: io.BytesIO) -> NDArray[Any]:
    if np.lib.format.read_magic(content) != (1, 0):
        raise ValueError("an array is of another version")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(content)
    values = memoryview(content.getbuffer())[content.tell() :]
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(values):
        raise ValueError(f"{len(values)} bytes for an array of {dtype} {shape}")
    return np.frombuffer(values, dtype).reshape(shape, order="F" if fortran else "C")


def _explain(path: Path, size: int, error: OSError) -> str:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    kept = "the file that was there before is whole" if path.is_file() else "nothing was left behind"
    fix = (
        f"free {size / 1e6:.1f} MB there or write elsewhere (hydra.run.dir=…)"
        if full
        else "check that the folder exists and may be written to"
    )
    reason = "the disk is full" if full else (error.strerror or type(error).__name__)
    return f"Expected to write {path} but {reason}; {kept}; {fix}, then run the same command again."


def _sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk; where folders cannot be opened (Windows), the system does."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def conf_folder() -> Path:
    """Return the folder of the configuration: in the installed package, or conf/ beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    places = (package / "conf", package.parent / "conf")
    for folder in places:
        if (folder / "train.yaml").is_file():
            return folder
    raise FileNotFoundError(
        f"Expected the configuration in {' or '.join(map(str, places))} but found none; install segdpo again."
    )
