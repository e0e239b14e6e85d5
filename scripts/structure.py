"""Print the signs of structure: modules, lines, helpers of one sibling, the longest file, and the files a batch passes.

    python scripts/structure.py          or: make structure

A batch is traced through one training step of a small network on `data=shapes`: from reading its records to the
optimiser's step. A file counts when one of its functions is called in between.
"""

import ast
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "segdpo"
SMALL = [
    "model=target",
    "model.network_factory._target_=torch.nn.Conv2d",
    "+model.network_factory.in_channels=3",
    "+model.network_factory.kernel_size=3",
    "+model.network_factory.padding=1",
    "model.classes_argument=out_channels",
    "data.count=24",
    "data.size=32",
    "reference_training.steps=1",
    "datamodule.batch_size=4",
    "trainer.max_steps=3",
    "trainer.accelerator=cpu",
    "callbacks=none",
    "logger=none",
    "threads=1",
]


def main() -> int:
    """Print one line a sign."""
    modules = sorted(PACKAGE.rglob("*.py"))
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in modules}
    helpers = helpers_of_one_sibling(modules)
    longest = max(lines, key=lines.__getitem__)
    passed = files_of_one_step()
    print(f"modules in segdpo/: {len(modules)}")
    print(f"lines in segdpo/: {sum(lines.values())}")
    print(f"modules imported by exactly one module, of the same package: {len(helpers)}")
    for helper, user in sorted(helpers.items()):
        print(f"  {helper} by {user}")
    print(f"longest file: {lines[longest]} ({longest.relative_to(ROOT)})")
    print(f"files that one batch passes from record to optimiser step: {len(passed)}")
    for name in sorted(passed):
        print(f"  {name}")
    return 0


def helpers_of_one_sibling(modules: list[Path]) -> dict[str, str]:
    """Return the modules that exactly one module imports, of the same package, and no `__init__` lists."""
    users: dict[str, set[str]] = {}
    names = {name_of(path) for path in modules if path.name != "__init__.py"}
    for path in modules:
        if path.name != "__init__.py":
            for imported in imports_of(path):
                if imported in names:
                    users.setdefault(imported, set()).add(name_of(path))
    # What a package's __init__ lists is public: the whole world may import it.
    public = {imported for path in modules if path.name == "__init__.py" for imported in imports_of(path)}
    return {
        module: next(iter(by))
        for module, by in users.items()
        if len(by) == 1 and module not in public and package_of(module) == package_of(next(iter(by)))
    }


def name_of(path: Path) -> str:
    """Return the dotted name of a module."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_of(module: str) -> str:
    """Return segdpo.<package> of a module."""
    return ".".join(module.split(".")[:2])


def imports_of(path: Path) -> Iterator[str]:
    """Yield the modules that a module imports; both readings of `from package import name`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def files_of_one_step() -> set[str]:
    """Return our files with functions that run from the end of one training step to the end of the next."""
    from hydra import compose, initialize_config_dir
    from lightning import Callback

    from segdpo.files import conf_folder
    from segdpo.recipes import run_recipe

    found: set[str] = set()

    def see(frame: FrameType, event: str, argument: Any) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(str(PACKAGE)):
            found.add(str(Path(name).relative_to(ROOT)))

    class Trace(Callback):
        # The first hook after the optimiser's step; the next batch is read after it.
        def on_train_batch_end(self, trainer: Any, task: Any, outputs: Any, batch: Any, number: int) -> None:
            sys.setprofile(see if trainer.global_step == 1 else None)

    with tempfile.TemporaryDirectory() as folder, initialize_config_dir(str(conf_folder()), version_base="1.3"):
        own = [f"run_folder={folder}/run", f"cache={folder}/cache"]
        with redirect_stdout(sys.stderr):
            run_recipe(compose("train", [*SMALL, *own]), [Trace()])
    sys.setprofile(None)
    return found


if __name__ == "__main__":
    sys.exit(main())
