"""Several runs as the report shows them: groups over seeds, what is missing among them, curves on common axes."""

import itertools
import math
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from segdpo.metrics.statistics import hierarchical_difference
from segdpo.reports.html_curves import Bundle, Figure, group_curves
from segdpo.reports.html_files import RunFiles, at, number, read_yaml
from segdpo.reports.html_plots import seed_figure
from segdpo.reports.html_run import RunView, command_of, view_of
from segdpo.reports.html_text import DASH, Verdict, bounds, images, plain, signed, tone_of
from segdpo.reports.sweep import MEASURES, NOT_GROUPED, Group, Run, Sweep, group_runs, read_run
from segdpo.reports.sweep_tables import SIGNED

DRAWN = {
    "policy": ("IoU of the policy with gold", False),
    "difference": ("Policy − reference, IoU", True),
    "chosen gain": ("Chosen gain; below 0: displacement", True),
}
RANGE = re.compile(r"range\(\s*(\d+)\s*,\s*(\d+)\s*\)")
# Beyond so many runs each is shown in brief: a page of forty runs has to open on a phone.
WHOLE = 6


@dataclass(frozen=True)
class GroupRow:
    """A line of a sweep's table, as text; each cell is a mean and its interval."""

    name: str
    cells: Sequence[tuple[str, str]]
    over_images: tuple[str, str]
    tone: str
    runs: str


@dataclass(frozen=True, eq=False)
class SweepView:
    """Several runs."""

    title: str
    verdict: Verdict
    facts: str
    command: str
    measures: Sequence[str]
    rows: Sequence[GroupRow]
    over_images: bool
    seeds: Sequence[Figure]
    curves: Sequence[Figure]
    bundles: Sequence[Bundle]
    runs: Sequence[tuple[str, RunView]]
    missing: Sequence[str]
    brief: bool


def sweep_view(read: Sequence[RunFiles], title: str, *, planned: Sequence[Path] = ()) -> SweepView:
    """Return what the report says of several runs; `planned` are the folders of their sweeps."""
    runs, missing = _runs(read)
    groups = sorted(group_runs(runs, NOT_GROUPED), key=_best_first) if runs else []
    sweep = Sweep(groups, [])
    files = {each.folder: each for each in read}
    bundles = [
        Bundle(group.name, place, [files[run.folder].series for run in group.runs])
        for place, group in enumerate(groups)
    ]
    rows = [_row(group, files) for group in groups]
    names = {run.folder: f"{group.name}, seed {run.seed}" for group in groups for run in group.runs}
    order = [*names, *(each.folder for each in read if each.folder not in names)]
    brief = len(read) > WHOLE
    figures = [seed_figure(sweep, measure, said, zero=zero) for measure, (said, zero) in DRAWN.items()]
    return SweepView(
        title=title,
        verdict=_verdict(groups),
        facts=facts_of(groups, read),
        command=_command(planned, read),
        measures=list(MEASURES),
        rows=rows,
        over_images=any(row.over_images[0] != DASH for row in rows),
        seeds=[figure for figure in figures if figure is not None],
        curves=group_curves(bundles),
        bundles=bundles if any(bundle.runs for bundle in bundles) else [],
        runs=[(names.get(folder, ""), view_of(files[folder], brief=brief)) for folder in order],
        missing=[*missing, *_missing_seeds(groups, read, planned), *_not_started(read, planned)],
        brief=brief,
    )


def _runs(read: Sequence[RunFiles]) -> tuple[list[Run], list[str]]:
    """Return the runs that came to their end, and a line on each that did not."""
    runs, missing = [], []
    for files in read:
        words = " ".join(files.overrides) or "no overrides"
        if not files.summary:
            missing.append(f"{files.folder.name} ({words}) did not come to its end: it has no whole summary.json.")
            continue
        try:
            run = read_run(files.folder)
        except (ValueError, TypeError, AttributeError) as error:
            missing.append(f"{files.folder.name} ({words}) cannot be read and was left out: {error}")
            continue
        if math.isnan(run.values["policy"]):
            missing.append(f"{files.folder.name} ({words}) has no IoU of the policy: it counts in no mean.")
        runs.append(run)
    return runs, missing


def _best_first(group: Group) -> float:
    mean = group.interval("policy").mean
    return math.inf if math.isnan(mean) else -mean


def _row(group: Group, files: Mapping[Path, RunFiles]) -> GroupRow:
    cells = []
    for measure in MEASURES:
        interval = group.interval(measure)
        sign = measure in SIGNED
        show = signed if sign else plain
        cells.append((show(interval.mean), bounds(vars(interval), sign=sign)))
    over = hierarchical_difference(
        [[image.change("iou") for image in files[run.folder].images] for run in group.runs],
        [[image.id for image in files[run.folder].images] for run in group.runs],
    )
    return GroupRow(
        group.name,
        cells,
        (signed(over.mean), bounds(vars(over), sign=True)),
        tone_of(vars(group.interval("difference"))),
        str(len(group.runs)),
    )


def _verdict(groups: Sequence[Group]) -> Verdict:
    """Say which group has the best policy, by how much it beats its reference, and how the others did."""
    known = [group for group in groups if not math.isnan(group.interval("policy").mean)]
    if not known:
        return Verdict("unknown", "No result", "no run came to its end with an IoU; see what is missing.")
    best = known[0]
    difference = best.interval("difference")
    tone = tone_of(vars(difference))
    seeds = images(difference.n, "run")
    against = f"policy − reference {signed(difference.mean)} {bounds(vars(difference), sign=True)}".strip()
    rest = f"with IoU {plain(best.interval('policy').mean)}; {against} over {seeds}."
    if len(known) > 1:
        tones = Counter(tone_of(vars(group.interval("difference"))) for group in known)
        said = {"better": "better than the reference", "worse": "worse", "open": "open", "unknown": "one run only"}
        counts = ", ".join(f"{tones[name]} {words}" for name, words in said.items() if tones[name])
        rest += f" Of {len(known)} groups: {counts}. Each interval stands alone: none is corrected for their number."
    return Verdict(tone, f"Best: {best.name}", rest)


def _missing_seeds(groups: Sequence[Group], read: Sequence[RunFiles], planned: Sequence[Path]) -> Iterator[str]:
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


def _not_started(read: Sequence[RunFiles], planned: Sequence[Path]) -> Iterator[str]:
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


def _command(planned: Sequence[Path], read: Sequence[RunFiles]) -> str:
    """Return the command of the sweep, or of the runs where there is no sweep (the first few)."""
    for folder in planned:
        task, own = (_of_multirun(folder, "overrides", key) for key in ("task", "hydra"))
        words = [str(word) for part in (task, own) for word in (part if isinstance(part, list) else [])]
        if words:
            return shlex.join(["python", "train.py", "-m", *(w for w in words if not w.startswith("hydra.mode="))])
    commands = [said for files in itertools.islice(read, 8) if (said := command_of(files))]
    return "\n".join(dict.fromkeys(commands))


def facts_of(groups: Sequence[Group], read: Sequence[RunFiles]) -> str:
    """Return how many runs, groups and seeds there are, and what they cost."""
    finished = sum(len(group.runs) for group in groups)
    seconds = sum(total for files in read if not math.isnan(total := number(at(files.summary, "seconds", "total"))))
    seeds = {run.seed for group in groups for run in group.runs}
    kinds = f"{images(len(groups), 'group')}, {images(len(seeds), 'seed')}"
    said = f"{finished} of {len(read)} runs came to their end: {kinds}"
    return f"{said}; {seconds / 60:.0f} minutes of computing." if seconds >= 60 else f"{said}."
