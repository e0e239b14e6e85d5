"""The part of the report about a sweep."""

import itertools
import math
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from segdpo.metrics import Interval, hierarchical_difference
from segdpo.reports.html.curves import Bundle, Figure, group_curves
from segdpo.reports.html.files import ImageValues, RunFiles, at, number, read_yaml
from segdpo.reports.html.plots import seed_figure
from segdpo.reports.html.run import RunView, command_of, view_of
from segdpo.reports.html.text import DASH, Verdict, bounds, images, plain, signed, tone_of
from segdpo.reports.sweep import (
    COUNTED,
    MEASURES,
    NOT_GROUPED,
    SIGNED,
    Columns,
    Group,
    Run,
    Sweep,
    as_share,
    best_first,
    contrasts,
    group_runs,
    read_run,
    sure_of_all,
)

TOGETHER = "over seeds and images"


@dataclass(frozen=True)
class Cell:
    """A mean, what stands below it, and the colour of both ("" for none)."""

    said: str
    below: str = ""
    tone: str = ""


@dataclass(frozen=True)
class GroupTable:
    """Names of the columns after the group's own, and a name and cells for each group."""

    names: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]


def group_table(sweep: Sweep, files: Mapping[Path, RunFiles], held: Columns) -> GroupTable:
    """Return the table; `held` are columns that hold the rows against one another, an interval for each group."""
    columns: dict[str, list[Cell]] = {}
    for measure in MEASURES:
        columns[measure] = [
            _said_n(_cell(interval, measure), interval, group)
            for group in sweep.groups
            for interval in [group.interval(measure)]
        ]
    together = [_over_images(group, files) for group in sweep.groups]
    if any(cell.said != DASH for cell in together):
        columns[TOGETHER] = together
    for title, intervals in held.items():
        columns[title] = [
            _said_n(_held(interval, title), interval, group)
            for interval, group in zip(intervals, sweep.groups, strict=True)
        ]
    for count in COUNTED:
        means = [group.interval(count).mean for group in sweep.groups]
        if not all(map(math.isnan, means)):
            columns[count] = [Cell(plain(mean, 0)) for mean in means]
    columns["runs"] = [Cell(str(len(group.runs))) for group in sweep.groups]
    return GroupTable(
        list(columns), [(group.name, [cells[k] for cells in columns.values()]) for k, group in enumerate(sweep.groups)]
    )


def said_of(sweep: Sweep, held: Columns) -> list[str]:
    """Return a line on each column that holds the rows against one another, and which differences stay sure of all."""
    said = {"recovery": "Recovery: (policy − reference)/(dense − reference), with Fieller’s interval over the seeds."}
    other = "{}: IoU of the policy minus that group’s, seed by seed, with Student’s interval."
    return [*(said.get(title, other.format(title)) for title in held), *sure_of_all(sweep, held)]


def _cell(interval: Interval, measure: str) -> Cell:
    sign = measure in SIGNED
    tone = tone_of(vars(interval)) if measure == "difference" else ""
    return Cell((signed if sign else plain)(interval.mean), bounds(vars(interval), sign=sign), tone)


def _said_n(cell: Cell, interval: Interval, group: Group) -> Cell:
    """Return a cell that says over how many runs it is, where that is not all of the group's."""
    return replace(cell, below=f"{cell.below} n {interval.n}".strip()) if group.in_part(interval) else cell


def _over_images(group: Group, files: Mapping[Path, RunFiles]) -> Cell:
    images = [files[run.folder].evaluation.images for run in group.runs]
    over = hierarchical_difference(
        [[image.change() for image in each] for each in images], [_told_apart(each) for each in images]
    )
    return Cell(signed(over.mean), bounds(vars(over), sign=True))


def _told_apart(images: Sequence[ImageValues]) -> list[str]:
    """Return the images' ids, the second of a name as its second: images.csv lists them in the same order each time."""
    seen: Counter[str] = Counter()
    names = []
    for image in images:
        seen[image.id] += 1
        names.append(f"{image.id}\0{seen[image.id]}")
    return names


def _held(interval: Interval, title: str) -> Cell:
    if title == "recovery":
        share, _, within = as_share(interval).replace("-", "−").partition(" [")
        return Cell(share, f"[{within}" if within else "")
    return Cell(signed(interval.mean), bounds(vars(interval), sign=True), tone_of(vars(interval)))


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


DRAWN = {
    "policy": ("IoU of the policy with gold", False),
    "difference": ("Policy − reference, IoU", True),
    "chosen gain": ("Chosen gain; below 0: displacement", True),
}
# Beyond so many runs each is shown in brief: a page of forty runs has to open on a phone.
WHOLE = 6
EVALUATIONS = Verdict("unknown", "Evaluations", "no run is among them, so there are no groups; each is shown below.")


@dataclass(frozen=True, eq=False)
class SweepView:
    """Several runs."""

    title: str
    verdict: Verdict
    facts: str
    command: str
    table: GroupTable
    held: Sequence[str]
    seeds: Sequence[Figure]
    curves: Sequence[Figure]
    bundles: Sequence[Bundle]
    runs: Sequence[tuple[str, RunView]]
    missing: Sequence[str]
    brief: bool


def sweep_view(
    read: Sequence[RunFiles],
    title: str,
    *,
    planned: Sequence[Path] = (),
    dense: str | None = None,
    against: str | None = None,
) -> SweepView:
    """Return what the report says of several runs.

    `planned` are the folders of their sweeps; `dense` and `against` name rows that others are held against.
    """
    runs, missing = _runs(read)
    groups = sorted(group_runs(runs, NOT_GROUPED), key=best_first) if runs else []
    sweep = Sweep(groups, [])
    files = {each.folder: each for each in read}
    bundles = [
        Bundle(group.name, place, [files[run.folder].series for run in group.runs])
        for place, group in enumerate(groups)
    ]
    held = contrasts(sweep, dense, against) if groups else {}
    names = {run.folder: f"{group.name}, seed {run.seed}" for group in groups for run in group.runs}
    labels = {each.folder: label for each, label in zip(read, _labels(read), strict=True)}
    order = [*names, *(folder for folder in labels if folder not in names)]
    brief = len(read) > WHOLE
    figures = [seed_figure(sweep, measure, said, zero=zero) for measure, (said, zero) in DRAWN.items()]
    return SweepView(
        title=title,
        verdict=_verdict(groups) if groups or not all(each.alone for each in read) else EVALUATIONS,
        facts=facts_of(groups, read),
        command=command_of_sweep(planned, read),
        table=group_table(sweep, files, held),
        held=said_of(sweep, held),
        seeds=[figure for figure in figures if figure is not None],
        curves=group_curves(bundles),
        bundles=bundles if any(bundle.runs for bundle in bundles) else [],
        runs=[(names.get(folder, labels[folder]), view_of(files[folder], brief=brief)) for folder in order],
        missing=[*missing, *missing_seeds(groups, read, planned), *not_started(read, planned)],
        brief=brief,
    )


def _runs(read: Sequence[RunFiles]) -> tuple[list[Run], list[str]]:
    """Return the runs that came to their end, and a line on each that did not."""
    runs, missing = [], []
    for files, label in zip(read, _labels(read), strict=True):
        if files.alone:
            missing.append(f"{label} is an evaluation alone, not a run: it is shown below and counts in no group.")
            continue
        if not files.summary:
            missing.append(f"{label} did not come to its end: no whole summary.json in {files.folder.name}.")
            continue
        try:
            run = read_run(files.folder)
        except (ValueError, TypeError, AttributeError) as error:
            missing.append(f"{label} cannot be read and was left out: {error}")
            continue
        if infinite := [name for name, value in run.values.items() if math.isinf(value)]:
            missing.append(f"{label} has an infinite {', '.join(infinite)}, which counts in no mean.")
        if math.isnan(run.values["policy"]):
            missing.append(f"{label} has no IoU of the policy, so it counts in no mean ({files.folder.name}).")
        runs.append(run)
    return runs, missing


def _labels(read: Sequence[RunFiles]) -> list[str]:
    """Return what sets each run apart from the others, as it was typed."""
    counts = Counter(word for files in read for word in set(files.overrides))
    own = [[word.lstrip("+") for word in files.overrides if counts[word] < len(read)] for files in read]
    return [" ".join(words) or files.folder.name for words, files in zip(own, read, strict=True)]


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


def facts_of(groups: Sequence[Group], read: Sequence[RunFiles]) -> str:
    """Return how many runs, groups and seeds there are, and what they cost."""
    finished = sum(len(group.runs) for group in groups)
    seconds = sum(total for files in read if not math.isnan(total := number(at(files.summary, "seconds", "total"))))
    seeds = {run.seed for group in groups for run in group.runs}
    kinds = f"{images(len(groups), 'group')}, {images(len(seeds), 'seed')}"
    alone = sum(files.alone for files in read)
    if alone == len(read):
        return f"{images(alone, 'evaluation')}."
    said = f"{finished} of {images(len(read) - alone, 'run')} came to their end: {kinds}"
    said += f"; beside them {images(alone, 'evaluation')}" if alone else ""
    return f"{said}; {seconds / 60:.0f} minutes of computing." if seconds >= 60 else f"{said}."
