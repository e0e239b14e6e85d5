"""Which extra of segdpo installs a package that is missing."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata

# Packages whose module has another name than what pip installs.
INSTALLED_AS = {"PIL": "pillow", "cv2": "opencv-python-headless", "hydra": "hydra-core", "yaml": "pyyaml"}
REQUIREMENT = re.compile(r"""(?P<package>[\w.-]+).*;.*\bextra\s*==\s*["'](?P<extra>[\w.-]+)["']""")


def extra_of(module: str, requirements: Sequence[str] | None = None) -> str | None:
    """Return the first extra that has the package of a module, in the order of pyproject.toml; None: no extra has it.

    Args:
        module: what was imported, such as "lightning.pytorch".
        requirements: lines of `Requires-Dist`; by default those that segdpo was installed with.

    >>> extra_of("cv2", ['opencv-python-headless>=4.9; extra == "train"'])
    'train'
    """
    if requirements is None:
        try:
            requirements = metadata.requires("segdpo") or []
        except metadata.PackageNotFoundError:  # a folder on the path
            requirements = []
    top = module.partition(".")[0]
    wanted = _normalised(INSTALLED_AS.get(top, top))
    for found in filter(None, map(REQUIREMENT.match, requirements)):
        if _normalised(found["package"]) == wanted:
            return found["extra"]
    return None


def missing_extra(error: BaseException) -> str | None:
    """Return the sentence for a package that is not installed: which it is, and the extra that installs it.

    Returns:
        None if no package of an extra is missing.
    """
    module = missing_module(error)
    if module is None or (extra := extra_of(module)) is None:
        return None
    return f"Expected the package {module}, which is not installed; run pip install 'segdpo[{extra}]'."


def missing_module(error: BaseException | None) -> str | None:
    """Return the module, without what is in it, whose absence caused an error; None if none did.

    The errors that it was raised from are looked at too, since Hydra wraps them.
    """
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name:
            return error.name.partition(".")[0]
        error = error.__cause__
    return None


@contextmanager
def extra_named() -> Iterator[None]:
    """Let the error for a package that is imported inside of the `with` name its extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        error.msg = missing_extra(error) or error.msg
        raise


def _normalised(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()
