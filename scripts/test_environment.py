"""Run tests in an environment of their own, which is removed afterwards.

    python scripts/test_environment.py core           # torch and jaxtyping, and of the test tools what these tests need
    python scripts/test_environment.py lowest         # the lowest versions that pyproject.toml allows
    python scripts/test_environment.py cluster        # Ray beside the packages of the Python that runs this
    python scripts/test_environment.py locked --python 3.13 tests/scores     # the versions of requirements.lock

Words after the kind are tests for pytest; without any, those that the kind is for. Exit status: that of pytest.
"""

import argparse
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
UV = [sys.executable, "-m", "uv"]
# What `make test` needs beside segdpo. The rest of the extra dev is for other checks.
TOOLS = ["pytest", "pytest-timeout", "pytest-cov", "hypothesis", "beartype"]
# They import torch, segdpo and the tools alone.
CORE = [
    "tests/kernels/test_dispatch.py",
    "tests/kernels/test_sparse.py",
    "tests/losses/test_preference.py",
    "tests/scores/test_distribution.py",
    "tests/scores/test_rankings.py",
    "tests/test_displacement.py",
    "tests/test_import.py",
    "tests/test_torch_modes.py",
]
# Extras that are installed with their lowest versions. Not hub, which needs newer versions of packages of train.
LOWEST = ["train", "lora", "export", "search", "coco", "cluster", "tensorboard"]
# Of the core and of training; not what looks at the repository, and not what needs further packages of the extra dev.
PARTS = "kernels losses scores masks metrics models data training recipes preferences inference reports rl"
LOWEST_TESTS = [f"tests/{part}" for part in PARTS.split()]
CLUSTER = ["tests/cluster", "tests/scripts/test_cluster_conf.py"]


def main() -> int:
    """Make the environment, and run the tests in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("core", "lowest", "cluster", "locked"))
    parser.add_argument("tests", nargs="*")
    parser.add_argument("--python", default=f"{sys.version_info.major}.{sys.version_info.minor}")
    options = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory(prefix="segdpo-") as folder:
        place = Path(folder)
        make_environment(options.kind, options.python, place)
        defaults = {"core": CORE, "lowest": LOWEST_TESTS, "cluster": CLUSTER, "locked": ["tests"]}
        words = [str(place / "bin/python"), "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        return subprocess.run([*words, *(options.tests or defaults[options.kind])], cwd=ROOT).returncode


def make_environment(kind: str, python: str, place: Path) -> None:
    """Install segdpo and the test tools into a new environment."""
    run("venv", "--no-python-downloads", "--python", python, place)
    install = ("pip", "install", "--python", place)
    if kind == "core":
        run(*install, "--editable", ROOT, *(tool for tool in TOOLS if tool != "pytest-cov"))
        check_core(installed(place))
        return
    if kind == "cluster":
        # What is here already is not installed twice; pip, unlike uv, sees it.
        site = Path(sysconfig.get_path("purelib"))
        (place / site.relative_to(sys.prefix) / "here.pth").write_text(f"{site}\n")
        pip = [sys.executable, "-m", "pip", "--python", str(place), "install", "--quiet"]
        subprocess.run([*pip, "--editable", f"{ROOT}[ray]"], check=True)
        return
    pins = ROOT / "requirements.lock"
    if kind == "lowest":
        pins = place / "lowest.txt"
        run(
            "pip", "compile", ROOT / "pyproject.toml", *extras(LOWEST), "--resolution", "lowest-direct",
            "--python", place, "--no-header", "--no-annotate", "--output-file", pins,
        )  # fmt: skip
    run(*install, "--requirement", pins)
    run(*install, "--no-deps", "--editable", ROOT)
    if kind == "lowest":
        run(*install, "--constraint", pins, *TOOLS)


def extras(names: list[str]) -> list[str]:
    """Return the options of uv for extras."""
    return [word for name in names for word in ("--extra", name)]


def installed(place: Path) -> set[str]:
    """Return the names of the packages in an environment."""
    listed = subprocess.run(
        [*UV, "pip", "freeze", "--quiet", "--python", place], capture_output=True, text=True, check=True
    )
    return {line.partition("==")[0].lower() for line in listed.stdout.splitlines() if "==" in line}


def check_core(names: set[str]) -> None:
    """Stop if a package of an extra came with the core."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    train = {line.split(">")[0].split("[")[0] for line in project["optional-dependencies"]["train"]}
    # torch itself needs these two.
    unwanted = (names & train) - {"filelock", "jinja2", "markupsafe"}
    if unwanted:
        sys.exit(f"Expected the core without packages of the extra train but it brings {', '.join(sorted(unwanted))}.")


def run(*words: str | Path) -> None:
    """Run uv, and stop where it fails."""
    subprocess.run([*UV, words[0], *map(str, words[1:]), "--quiet"], check=True)


if __name__ == "__main__":
    sys.exit(main())
