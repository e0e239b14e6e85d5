"""The folders of one worker: the sample, what may be written, and around them files that must not change."""

import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path

TOKEN = "segdpo_fuzz_canary"
DEPTH = ("a", "b", "c", "d")


class _Touch:
    """Loading its pickle without care creates the canary."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[type[Path], tuple[str]] | tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


@dataclass(frozen=True)
class Place:
    """`folder` holds the sample, `out` takes what is written; both lie four levels below `root`."""

    root: Path

    @property
    def folder(self) -> Path:
        """Where the mutated sample lies."""
        return self.root.joinpath(*DEPTH, "in")

    @property
    def out(self) -> Path:
        """The only place that may be written to."""
        return self.root.joinpath(*DEPTH, "out")

    @property
    def canary(self) -> Path:
        """The file that code from a mutated file would create."""
        return self.root / TOKEN

    def make(self) -> None:
        """Make the folders again, and in `root` files that a mutated file may point to."""
        shutil.rmtree(self.root, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.out.mkdir()
        code = f"import pathlib\npathlib.Path({str(self.canary)!r}).touch()\ndef run(*_, **__): pass\n"
        for name in ("secret.py", "hubconf.py", f"{TOKEN}_module.py", "modeling.py"):
            (self.root / name).write_text(code)
        (self.root / "secret.pt").write_bytes(pickle.dumps(_Touch(self.canary)))
        (self.root / "secret.png").write_bytes(b"secret")
        names = {"AutoConfig": "modeling.Config", "AutoModel": "modeling.Model"}
        (self.root / "config.json").write_text(f'{{"auto_map": {names}, "model_type": "x"}}'.replace("'", '"'))
        with (self.root / "secret.zip").open("wb") as file:
            shutil.copyfileobj((self.root / "secret.pt").open("rb"), file)

    def snapshot(self) -> dict[str, tuple[int, int]]:
        """Return the files outside `folder` and `out`, with sizes and times."""
        skipped = {self.folder, self.out}
        found: dict[str, tuple[int, int]] = {}
        stack = [self.root]
        while stack:
            for path in stack.pop().iterdir():
                if path in skipped:
                    continue
                state = path.lstat()
                directory = path.is_dir() and not path.is_symlink()
                found[str(path)] = (0, 0) if directory else (state.st_size, state.st_mtime_ns)
                if directory:
                    stack.append(path)
        return found
