"""Public names of a package that are imported when they are first used (PEP 562)."""

import ast
import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec


def attach(package: str) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` for a package whose `__init__.py` lists its public names.

    The list is the block `if TYPE_CHECKING:` of that file, with lines `from MODULE import NAME as NAME`. Type checkers
    and editors read these lines directly; at run time a line is executed when its name is first used. The list is also
    the package's `__all__`; names in a second such block are public, too, but a star import leaves them out. Packages
    inside the package are imported when they are first used, too.

    Args:
        package: the name of the package, whose `__init__.py` is being imported.

    Raises:
        ImportError: the package was installed without its source.
        AttributeError: by `__getattr__`, for a name that is not listed.
        ModuleNotFoundError: by `__getattr__`, for a package that is not installed; the message names its extra.
    """
    try:
        source = inspect.getsource(sys.modules[package])
    except (OSError, TypeError) as error:
        raise ImportError(
            f"Expected the source of {package}, whose __init__.py lists its public names, but only its byte code is "
            "installed; install segdpo with its .py files.",
            name=package,
        ) from error
    blocks = [_homes(node) for node in ast.parse(source).body if isinstance(node, ast.If)]
    homes = {name: home for block in blocks for name, home in block.items()}

    def get(name: str) -> object:
        if name == "__all__":  # of `from PACKAGE import *`
            return sorted(blocks[0])
        if name in homes:
            try:
                found = _member(*homes[name])
            except ModuleNotFoundError as error:
                from segdpo.extras import missing_extra

                error.msg = missing_extra(error) or error.msg
                raise
        elif not name.startswith("_") and _is_package(f"{package}.{name}"):
            found = import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, found)
        return found

    return get, lambda: sorted({*vars(sys.modules[package]), *homes})


def _homes(block: ast.If) -> dict[str, tuple[str, str]]:
    """Return name → (module, name there) of the lines of a block."""
    lines = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {name.asname or name.name: (str(node.module), name.name) for node in lines for name in node.names}


def _is_package(name: str) -> bool:
    spec = find_spec(name)
    return spec is not None and spec.submodule_search_locations is not None


def _member(module: str, name: str) -> object:
    home = import_module(module)
    return getattr(home, name) if hasattr(home, name) else import_module(f"{module}.{name}")
