"""Public names of a package that are imported when they are first used (PEP 562)."""

import ast
import inspect
import sys
from collections.abc import Callable
from importlib import import_module


def attach(package: str) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` for a package whose `__init__.py` lists its public names.

    The list is the block `if TYPE_CHECKING:` of that file, with lines `from MODULE import NAME as NAME`. Type checkers
    and editors read these lines directly; at run time a line is executed when its name is first used.

    Args:
        package: the name of the package, whose `__init__.py` is being imported.

    Raises:
        AttributeError: by `__getattr__`, for a name that is not listed.
    """
    source = inspect.getsource(sys.modules[package])
    block = next(node for node in ast.parse(source).body if isinstance(node, ast.If))
    lines = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    homes = {name.asname or name.name: (str(node.module), name.name) for node in lines for name in node.names}

    def get(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, own = homes[name]
        found = _member(module, own)
        setattr(sys.modules[package], name, found)
        return found

    return get, lambda: sorted({*vars(sys.modules[package]), *homes})


def _member(module: str, name: str) -> object:
    if module not in sys.modules or not hasattr(sys.modules[module], name):
        home = import_module(module)
        return getattr(home, name) if hasattr(home, name) else import_module(f"{module}.{name}")
    return getattr(sys.modules[module], name)
