"""Errors that end a command: one line with the file, the reason and the fix; of a bug, the traceback."""

import dis
import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from segdpo.extras import missing_extra, missing_module

# Errors of other packages about files, options and devices, by name: to import those packages takes seconds.
OF_OTHERS = {
    "hydra.errors.HydraException",
    "lightning.fabric.utilities.exceptions.MisconfigurationException",
    "omegaconf.errors.OmegaConfBaseException",
    "pyarrow.lib.ArrowException",
    "safetensors._safetensors_rust.SafetensorError",
    "torch.OutOfMemoryError",
    "yaml.error.YAMLError",
    "zipfile.BadZipFile",
    "zlib.error",
}
ELSEWHERE = "write elsewhere (hydra.run.dir=…, cache=…, --out …)"
FIXES = {
    errno.ENOENT: "check the path",
    errno.EACCES: f"check who may read and write there, or {ELSEWHERE}",
    errno.EPERM: f"check who may read and write there, or {ELSEWHERE}",
    errno.EROFS: ELSEWHERE,
    errno.ENOSPC: f"free some space there, or {ELSEWHERE}",
    errno.EDQUOT: f"free some space there, or {ELSEWHERE}",
    errno.EMFILE: "raise the limit of open files (ulimit -n), or lower datamodule.workers",
}
SMALLER = "lower datamodule.batch_size, or take smaller images or a smaller network"
HINT = "(--debug shows the traceback)"
# Hydra's own name, so that its errors come with tracebacks too, and those of processes that are started.
DEBUG = "HYDRA_FULL_ERROR"
PACKAGE = f"{Path(__file__).resolve().parent}{os.sep}"
RAISE = dis.opmap["RAISE_VARARGS"]
# What a DataLoader makes of an error of its workers: a traceback, at whose end is the message.
OF_WORKER = re.compile(r"Caught \w+ in DataLoader worker process.*^[\w.]+: (?P<message>.*)", re.DOTALL | re.MULTILINE)


class Ended(SystemExit):
    """A command ends with exit status 1 and a line that says why, `code`."""


@contextmanager
def errors_as_lines() -> Iterator[None]:
    """End with a line for an error that is no bug of segdpo; raise other errors, and all of them with --debug."""
    try:
        yield
    except Exception as error:
        if is_debugging() or (line := explain(error)) is None:
            raise
        raise Ended(line) from error


@contextmanager
def debugging(on: bool) -> Iterator[None]:
    """Show tracebacks inside of the `with`, in processes that are started there too."""
    before = os.environ.get(DEBUG)
    if on:
        os.environ[DEBUG] = "1"
    try:
        yield
    finally:
        if on and before is None:
            os.environ.pop(DEBUG, None)


def is_debugging() -> bool:
    """Return whether errors are shown with their tracebacks."""
    return os.environ.get(DEBUG) == "1"


def explain(error: BaseException) -> str | None:
    """Return what a user has to know of an error; None of a bug, whose traceback has to be seen.

    Errors of files, of values, of options and of memory are explained, and whatever segdpo raises on purpose.
    """
    if said := missing_extra(error):
        return said
    if (cause := error.__cause__) is not None and _is_named(error, "hydra.errors.HydraException"):
        if is_raised_here(cause) or isinstance(cause, OSError):
            return explain(cause)
        more = f"\n{cause}" if _is_named(cause, "omegaconf.errors.OmegaConfBaseException") else ""
        return _line(f"{error}{more}", error)
    if isinstance(error, OSError):
        return f"{_of_system(error)} {HINT}"
    if isinstance(error, MemoryError) or _is_named(error, "torch.OutOfMemoryError"):
        return f"Expected enough memory but there is too little ({_message(error)}); {SMALLER}. {HINT}"
    if isinstance(error, ModuleNotFoundError):
        return None
    if is_raised_here(error):
        return _line(_message(error), error)
    if isinstance(error, ValueError) or _is_named(error, *OF_OTHERS):
        own = type(error).__module__.startswith(("segdpo.", "hydra."))
        return _line(_message(error) if own else f"{type(error).__name__}: {_message(error)}", error)
    return None


def _line(message: str, error: BaseException) -> str:
    if module := missing_module(error):
        message += f"\nThere is no module {module}; if it is yours, PYTHONPATH=FOLDER names its folder."
    return f"{message.rstrip()} {HINT}"


def _message(error: BaseException) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    found = OF_WORKER.match(text)
    return (found["message"] if found else text).strip() or type(error).__name__


def _of_system(error: OSError) -> str:
    """Return the message of segdpo, or the file, what the system says of it, and how to fix it."""
    if error.errno is None or error.filename is None:
        return error.strerror or _message(error)
    files = " → ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    return f"{files}: {error.strerror}; {FIXES.get(error.errno, 'check the path and the disk')}."


def _is_named(error: BaseException, *names: str) -> bool:
    return any(f"{base.__module__}.{base.__qualname__}" in names for base in type(error).__mro__)


def is_raised_here(error: BaseException) -> bool:
    """Return whether a `raise` of segdpo made the error, with a message: then it is meant for the user."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or not str(error):
        return False
    code = trace.tb_frame.f_code
    return code.co_filename.startswith(PACKAGE) and code.co_code[trace.tb_lasti] == RAISE
