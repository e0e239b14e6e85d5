"""Everything outside a package names segdpo.<package>.<name> at most, and every name that is listed or used exists."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(path.parent.name for path in (ROOT / "segdpo").glob("*/__init__.py"))
NAME = re.compile(r"(?<![\w./-])segdpo(?:\.[A-Za-z_]\w*)+")
# Transforms of albumentations, built with our seeds: a namespace inside a package.
INNER = "segdpo.data.albumentations"
SUFFIXES = (".py", ".md", ".yaml", ".json", ".toml")

PROSE = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
YAMLS = sorted((ROOT / "conf").rglob("*.yaml"))
SCRIPTS = [ROOT / "train.py", *sorted((ROOT / "examples").glob("*.py")), *sorted((ROOT / "scripts").rglob("*.py"))]
MODULES = sorted((ROOT / "segdpo").rglob("*.py"))


def short(path):
    return str(path.relative_to(ROOT))


def too_deep(name):
    return name.count(".") > (3 if name.startswith(f"{INNER}.") else 2)


def resolve(name):
    """Return what a dotted name stands for; AttributeError or ImportError where there is nothing."""
    found = import_module("segdpo")
    for part in name.split(".")[1:]:
        found = getattr(found, part) if hasattr(found, part) else import_module(f"{found.__name__}.{part}")
    return found


def imports_of(path):
    """Return the dotted names of our own that a Python file imports."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "segdpo":
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] == "segdpo"]
    return found


@pytest.mark.parametrize("path", [*PROSE, *YAMLS], ids=short)
def test_names_in_prose_and_configuration(path):
    names = {name for name in NAME.findall(path.read_text()) if not name.endswith(SUFFIXES)}
    assert [name for name in sorted(names) if too_deep(name)] == []
    for name in names:
        resolve(name)


@pytest.mark.parametrize("path", SCRIPTS, ids=short)
def test_imports_of_scripts_and_examples(path):
    names = {*imports_of(path), *NAME.findall(path.read_text())}
    assert [name for name in sorted(names) if too_deep(name)] == []
    for name in names:
        resolve(name)


@pytest.mark.parametrize("path", MODULES, ids=short)
def test_imports_between_packages(path):
    inside = path.relative_to(ROOT / "segdpo").parts
    own = f"segdpo.{inside[0]}." if len(inside) > 1 else None
    if path.name == "__init__.py" and len(inside) == 1:
        own = None
    assert [name for name in imports_of(path) if too_deep(name) and not (own and name.startswith(own))] == []


@pytest.mark.parametrize("name", ["", *PACKAGES])
def test_every_public_name_is_there(name):
    package = import_module(f"segdpo.{name}" if name else "segdpo")
    listed = imports_of(Path(package.__file__))
    for one in listed:
        public = one.rpartition(".")[2]
        if public != "attach":
            assert getattr(package, public) is not None
            assert public in dir(package)


def test_every_package_has_a_page_of_the_reference():
    assert {path.stem for path in (ROOT / "docs/api").glob("*.md")} == {*PACKAGES, "index"}
