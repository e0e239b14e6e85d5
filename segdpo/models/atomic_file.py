"""Writing a file so that at any moment there is the old one whole or the new one whole."""

import contextlib
import errno
import os
import secrets
from pathlib import Path


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write beside the file, reach the disk, then take its place; whatever goes wrong, nothing half-written stays."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, _say(path, len(content), error)) from error
    finally:
        # After Ctrl-C too; after a success there is nothing left under this name.
        with contextlib.suppress(OSError):
            temporary.unlink()
    _reach_the_disk(path.parent)


def _say(path: Path, size: int, error: OSError) -> str:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    kept = "the file that was there before is whole" if path.is_file() else "nothing was left behind"
    mend = (
        f"free {size / 1e6:.1f} MB there or write elsewhere (hydra.run.dir=…)"
        if full
        else "check that the folder exists and may be written to"
    )
    what = "the disk is full" if full else (error.strerror or type(error).__name__)
    return f"Expected to write {path} but {what}; {kept}; {mend}, then run the same command again."


def _reach_the_disk(folder: Path) -> None:
    """Make the new name outlast a power cut; where folders cannot be opened (Windows), the system does it itself."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
