"""Count the packages and megabytes that installing segdpo takes, in environments that are removed afterwards.

    python scripts/install_size.py                          # segdpo, and each of its extras for users
    python scripts/install_size.py '.[train]' '../old[train]'    # what pip would be given

A row has two halves: everything, and everything but torch with what it brings itself (CUDA, Triton, …).
"""

import argparse
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from importlib.metadata import Distribution, distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]
UV = [sys.executable, "-m", "uv"]
# Extras for work on segdpo itself.
OURS = ("docs", "dev")


def main() -> None:
    """Install each, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help="requirements; a folder with its extras in brackets")
    what = parser.parse_args().what or [str(ROOT), *(f"{ROOT}[{extra}]" for extra in user_extras())]
    alone = {name for name, _ in sizes_of("torch")}
    print("| install | packages | MB | without torch: packages | MB |\n|---|--:|--:|--:|--:|")
    for requirement in what:
        found = sizes_of(requirement)
        rest = [size for name, size in found if name not in alone]
        cells = (len(found), megabytes(size for _, size in found), len(rest), megabytes(rest))
        print(f"| `{label(requirement)}` |", " | ".join(map(str, cells)), "|", flush=True)


def user_extras() -> list[str]:
    """Return the extras that a user installs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [name for name in project["optional-dependencies"] if name not in OURS]


def sizes_of(requirement: str) -> list[tuple[str, int]]:
    """Install into a new environment; return the name of each package and the bytes of its files."""
    with tempfile.TemporaryDirectory(prefix="segdpo-") as folder:
        subprocess.run([*UV, "venv", "--quiet", folder], check=True)
        subprocess.run([*UV, "pip", "install", "--quiet", "--python", folder, requirement], check=True)
        (packages,) = Path(folder).glob("lib/python*/site-packages")
        return [(found.name.lower(), size_of(found)) for found in distributions(path=[str(packages)])]


def size_of(package: Distribution) -> int:
    """Return the bytes of a package's files."""
    places = [Path(str(file.locate())) for file in package.files or ()]
    return sum(place.stat().st_size for place in places if place.is_file())


def megabytes(sizes: Iterable[int]) -> int:
    """Return the sum of bytes in megabytes (10⁶)."""
    return round(sum(sizes) / 1e6)


def label(requirement: str) -> str:
    """Return the requirement as a user would write it."""
    _, bracket, extra = requirement.partition("[")
    return f"segdpo{bracket}{extra}"


if __name__ == "__main__":
    main()
