"""What a sweep was to run, as its multirun.yaml says, and what of it is missing."""

import itertools
import math
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from segdpo.reports.html_files import RunFiles
from segdpo.reports.html_run import command_of
from segdpo.reports.html_text import images
from segdpo.reports.html_tolerant import at, read_yaml
from segdpo.reports.sweep import Group

RANGE = re.compile(r"range\(\s*(\d+)\s*,\s*(\d+)\s*\)")


def command_of_sweep(planned: Sequence[Path], read: Sequence[RunFiles]) -> str:
    """Return the command of the sweep, or of the runs where there is no sweep (the first few)."""
    for folder in planned:
        task, own = (_of_multirun(folder, "overrides", key) for key in ("task", "hydra"))
        words = [str(word) for part in (task, own) for word in (part if isinstance(part, list) else [])]
        if words:
            return shlex.join(["python", "train.py", "-m", *(w for w in words if not w.startswith("hydra.mode="))])
    commands = [said for files in itertools.islice(read, 8) if (said := command_of(files))]
    return "\n".join(dict.fromkeys(commands))


def missing_seeds(groups: Sequence[Group], read: Sequence[RunFiles], planned: Sequence[Path]) -> Iterator[str]:
    """Give a line for each group that lacks seeds which others have, or which the sweep was to run."""
    wanted = {str(seed) for group in groups for seed in (run.seed for run in group.runs)}
    wanted |= {value for folder in planned for value in _grid(folder).get("seed", [])}
    wanted |= {word.partition("=")[2] for files in read for word in files.overrides if word.startswith("seed=")}
    for group in groups:
        counts = Counter(run.seed for run in group.runs)
        lacking = sorted(wanted - counts.keys(), key=lambda seed: (len(seed), seed))
        if lacking:
            seeds = f"seed{'s' if len(lacking) > 1 else ''} {', '.join(lacking)}"
            yield f"{group.name}: {seeds} missing; its mean is over {images(len(group.runs), 'run')}."
        if twice := [seed for seed, count in counts.items() if count > 1]:
            yield f"{group.name}: seed {', '.join(twice)} more than once; equal runs make intervals too narrow."


def not_started(read: Sequence[RunFiles], planned: Sequence[Path]) -> Iterator[str]:
    """Give a line for each sweep that was to have more runs than have a folder."""
    for folder in planned:
        grid = _grid(folder)
        wanted = math.prod(len(values) for values in grid.values()) if grid else 0
        begun = [files for files in read if folder in files.folder.parents]
        if wanted > len(begun):
            yield (
                f"{folder.name}: {wanted - len(begun)} of {wanted} runs were never begun; the same command goes on "
                "with the sweep."
            )


def _grid(folder: Path) -> dict[str, list[str]]:
    """Return the values that a sweep was to take for each key, as its multirun.yaml says; nothing where it is odd."""
    params = _of_multirun(folder, "sweeper", "params")
    words = _of_multirun(folder, "overrides", "task")
    asked = {str(key): str(value) for key, value in params.items()} if isinstance(params, Mapping) else {}
    asked |= dict(str(word).partition("=")[::2] for word in (words if isinstance(words, list) else []))
    grid = {key.lstrip("+"): _values(value) for key, value in asked.items()}
    # What is not understood would make the count a wrong one.
    return {} if [] in grid.values() else {key: values for key, values in grid.items() if len(values) > 1}


def _values(text: str) -> list[str]:
    """Return the values of an override; none where it is more than a list or a range.

    >>> _values("dpo,sft"), _values("range(0,3)"), _values("choice(a,b)")
    (['dpo', 'sft'], ['0', '1', '2'], [])
    """
    if match := RANGE.fullmatch(text.strip()):
        return [str(value) for value in range(int(match[1]), int(match[2]))]
    if "," in text and set(text) & set("()[]{}'\""):
        return []
    return [value.strip() for value in text.split(",")]


def _of_multirun(folder: Path, *keys: str) -> object:
    path = folder / "multirun.yaml"
    return at(read_yaml(path.read_text(errors="replace")), "hydra", *keys) if path.is_file() else None
