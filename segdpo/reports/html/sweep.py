"""The content of the HTML report about a sweep or several runs."""

import itertools
import math
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from segdpo.metrics import Interval
from segdpo.reports.html.figures import Figure, GroupCurves, group_curves, seed_figures
from segdpo.reports.html.run import RunView, Verdict, command_of, run_view
from segdpo.reports.run_files import RunFiles, at, mapping_at, number, read_yaml
from segdpo.reports.runs import MEASURES, SIGNED, Group, Run, run_of
from segdpo.reports.sweep import Comparison, Sweep, sweep_of
from segdpo.reports.text import DASH, bounds, count_of, percent, plain, signed, verdict_of

OVER_IMAGES = "over seeds and images"
# Of more runs each is shown in brief: the page of forty runs has to open on a phone.
SHOWN_WHOLE = 6
RANGE = re.compile(r"range\(\s*(\d+)\s*,\s*(\d+)\s*\)")
EVALUATIONS = Verdict("unknown", "Evaluations", "no run is among them, so there are no groups; each is shown below.")


@dataclass(frozen=True)
class Cell:
    """A mean, its interval below it, and the class that colours both."""

    text: str
    below: str = ""
    tone: str = ""


@dataclass(frozen=True, eq=False)
class SweepView:
    """What the page shows of several runs; `table` has a name and cells for each group, under `headings`."""

    title: str
    verdict: Verdict
    facts: str
    command: str
    headings: Sequence[str]
    table: Sequence[tuple[str, Sequence[Cell]]]
    notes: Sequence[str]
    seeds: Sequence[Figure]
    curves: Sequence[Figure]
    legend: Sequence[GroupCurves]
    runs: Sequence[tuple[str, RunView]]
    missing: Sequence[str]
    brief: bool


def sweep_view(
    read: Sequence[RunFiles],
    title: str,
    *,
    sweep_folders: Sequence[Path] = (),
    dense: str | None = None,
    against: str | None = None,
) -> SweepView:
    """Return what the page shows of several runs.

    Args:
        read: the files of the runs.
        title: the heading of the page.
        sweep_folders: folders of sweeps, with the multirun.yaml that says which runs there should be.
        dense: the group of which others recover a share.
        against: the group that others are compared with.
    """
    labels = {files.folder: label for files, label in zip(read, _labels(read), strict=True)}
    runs, missing = _finished(read, labels)
    sweep = sweep_of(runs, dense=dense, against=against) if runs else Sweep([])
    groups = sweep.groups
    files_of = {files.folder: files for files in read}
    curves = [
        GroupCurves(group.name, place, [files_of[run.folder].series for run in group.runs])
        for place, group in enumerate(groups)
    ]
    columns = _columns(sweep)
    names = {run.folder: f"{group.name}, seed {run.seed}" for group in groups for run in group.runs}
    order = [*names, *(folder for folder in labels if folder not in names)]
    brief = len(read) > SHOWN_WHOLE
    return SweepView(
        title=title,
        verdict=_verdict(groups) if groups or not all(files.only_evaluation for files in read) else EVALUATIONS,
        facts=_facts(groups, read),
        command=_command(sweep_folders, read),
        headings=list(columns),
        table=[(group.name, [cells[k] for cells in columns.values()]) for k, group in enumerate(groups)],
        notes=sweep.notes(),
        seeds=seed_figures(groups),
        curves=group_curves(curves),
        legend=curves if any(each.runs for each in curves) else [],
        runs=[(names.get(folder, labels[folder]), run_view(files_of[folder], brief=brief)) for folder in order],
        missing=[*missing, *_missing_seeds(groups, read, sweep_folders), *_not_started(read, sweep_folders)],
        brief=brief,
    )


def _labels(read: Sequence[RunFiles]) -> list[str]:
    """Return the overrides of each run that not all runs have."""
    counts = Counter(word for files in read for word in set(files.overrides))
    own = [[word.lstrip("+") for word in files.overrides if counts[word] < len(read)] for files in read]
    return [" ".join(words) or files.folder.name for words, files in zip(own, read, strict=True)]


def _finished(read: Sequence[RunFiles], labels: Mapping[Path, str]) -> tuple[list[Run], list[str]]:
    """Return the finished runs, and lines on what is wrong with others and with their measures."""
    runs, missing = [], []
    for files in read:
        label = labels[files.folder]
        if files.only_evaluation:
            missing.append(f"{label} is an evaluation, not a run: it is shown below and counts in no group.")
            continue
        if not files.summary:
            missing.append(f"{label} is unfinished: no whole summary.json in {files.folder.name}.")
            continue
        try:
            run = run_of(files.folder, files.summary, files.overrides, files.evaluation.images)
        except ValueError as error:
            missing.append(f"{label} cannot be read and was left out: {error}.")
            continue
        if infinite := [name for name, value in run.values.items() if math.isinf(value)]:
            missing.append(f"{label} has an infinite {', '.join(infinite)}, which counts in no mean.")
        if math.isnan(run.values["policy"]):
            missing.append(f"{label} has no IoU of the policy, so it counts in no mean ({files.folder.name}).")
        runs.append(run)
    return runs, missing


def _columns(sweep: Sweep) -> dict[str, list[Cell]]:
    """Return the columns of the table by their headings, a cell for each group."""
    groups = sweep.groups
    columns = {measure: [_measured(group, measure) for group in groups] for measure in MEASURES}
    over_images = [_over_images(group) for group in groups]
    if any(cell.text != DASH for cell in over_images):
        columns[OVER_IMAGES] = over_images
    for each in sweep.comparisons:
        pairs = zip(groups, each.intervals, strict=True)
        columns[each.title] = [_compared(group, interval, each) for group, interval in pairs]
    for count in sweep.counts():
        columns[count] = [Cell(plain(group.interval(count).mean, 0)) for group in groups]
    columns["runs"] = [Cell(str(len(group.runs))) for group in groups]
    return columns


def _measured(group: Group, measure: str) -> Cell:
    interval, sign = group.interval(measure), measure in SIGNED
    text = signed(interval.mean) if sign else plain(interval.mean)
    tone = verdict_of(interval) if measure == "difference" else ""
    return _with_n(Cell(text, bounds(interval, sign=sign), tone), interval, group)


def _compared(group: Group, interval: Interval, comparison: Comparison) -> Cell:
    cell = Cell(signed(interval.mean), bounds(interval, sign=True), verdict_of(interval))
    if comparison.recovery:
        share, _, within = percent(interval).replace("-", "−").partition(" [")
        cell = Cell(share, f"[{within}" if within else "")
    return _with_n(cell, interval, group)


def _with_n(cell: Cell, interval: Interval, group: Group) -> Cell:
    """Add the number of runs where it is not that of the group."""
    return replace(cell, below=f"{cell.below} n {interval.n}".strip()) if group.covers_part(interval) else cell


def _over_images(group: Group) -> Cell:
    interval = group.over_images()
    return Cell(signed(interval.mean), bounds(interval, sign=True))


def _verdict(groups: Sequence[Group]) -> Verdict:
    """Return which group has the best policy, how much better than its reference it is, and how the others did."""
    known = [group for group in groups if not math.isnan(group.interval("policy").mean)]
    if not known:
        return Verdict("unknown", "No result", "no finished run has an IoU; see what is missing.")
    best = known[0]
    difference = best.interval("difference")
    change = f"policy − reference {signed(difference.mean)} {bounds(difference, sign=True)}".strip()
    rest = f"with IoU {plain(best.interval('policy').mean)}; {change} over {count_of(difference.n, 'run')}."
    if len(known) > 1:
        tones = Counter(verdict_of(group.interval("difference")) for group in known)
        words = {"better": "better than the reference", "worse": "worse", "open": "open", "unknown": "one run only"}
        counts = ", ".join(f"{tones[tone]} {text}" for tone, text in words.items() if tones[tone])
        rest += f" Of {len(known)} groups: {counts}. No interval is corrected for the number of groups."
    return Verdict(verdict_of(difference), f"Best: {best.name}", rest)


def _facts(groups: Sequence[Group], read: Sequence[RunFiles]) -> str:
    """Return how many runs, groups and seeds there are, and how long they took."""
    evaluations = sum(files.only_evaluation for files in read)
    if evaluations == len(read):
        return f"{count_of(evaluations, 'evaluation')}."
    finished = sum(len(group.runs) for group in groups)
    seeds = {run.seed for group in groups for run in group.runs}
    text = f"{finished} of {count_of(len(read) - evaluations, 'run')} finished: "
    text += f"{count_of(len(groups), 'group')}, {count_of(len(seeds), 'seed')}"
    text += f"; also {count_of(evaluations, 'evaluation')}" if evaluations else ""
    times = [number(at(files.summary, "seconds", "total")) for files in read]
    seconds = sum(time for time in times if not math.isnan(time))
    return f"{text}; {seconds / 60:.0f} minutes of computing." if seconds >= 60 else f"{text}."


def _command(sweep_folders: Sequence[Path], read: Sequence[RunFiles]) -> str:
    """Return the command of the sweep, or where there is none, those of the first runs."""
    for folder in sweep_folders:
        overrides = mapping_at(_multirun(folder), "overrides")
        parts = [overrides.get(key) for key in ("task", "hydra")]
        words = [str(word) for part in parts if isinstance(part, list) for word in part]
        if words:
            return shlex.join(["segdpo", "train", "-m", *(w for w in words if not w.startswith("hydra.mode="))])
    commands = [command for files in itertools.islice(read, 8) if (command := command_of(files))]
    return "\n".join(dict.fromkeys(commands))


def _missing_seeds(groups: Sequence[Group], read: Sequence[RunFiles], sweep_folders: Sequence[Path]) -> Iterator[str]:
    """Yield a line for each group that lacks seeds which others have, or which the sweep should have run."""
    wanted = {run.seed for group in groups for run in group.runs}
    wanted |= {value for folder in sweep_folders for value in _grid(folder).get("seed", [])}
    wanted |= {word.partition("=")[2] for files in read for word in files.overrides if word.startswith("seed=")}
    for group in groups:
        counts = Counter(run.seed for run in group.runs)
        lacking = sorted(wanted - counts.keys(), key=lambda seed: (len(seed), seed))
        if lacking:
            seeds = f"seed{'s' if len(lacking) > 1 else ''} {', '.join(lacking)}"
            yield f"{group.name}: {seeds} missing; its mean is over {count_of(len(group.runs), 'run')}."
        if repeated := [seed for seed, count in counts.items() if count > 1]:
            yield f"{group.name}: seed {', '.join(repeated)} more than once; equal runs make intervals too narrow."


def _not_started(read: Sequence[RunFiles], sweep_folders: Sequence[Path]) -> Iterator[str]:
    """Yield a line for each sweep of which some runs have no folder."""
    for folder in sweep_folders:
        grid = _grid(folder)
        wanted = math.prod(len(values) for values in grid.values()) if grid else 0
        started = sum(folder in files.folder.parents for files in read)
        if wanted > started:
            count = f"{wanted - started} of {wanted} runs"
            yield f"{folder.name}: {count} not started; the same command with resume=last resumes the sweep."


def _grid(folder: Path) -> dict[str, list[str]]:
    """Return the values of each option that the sweep was to try; nothing where its multirun.yaml is not understood."""
    params = mapping_at(_multirun(folder), "sweeper", "params")
    words = at(_multirun(folder), "overrides", "task")
    asked = {str(key): str(value) for key, value in params.items()}
    asked |= dict(str(word).partition("=")[::2] for word in (words if isinstance(words, list) else []))
    grid = {key.lstrip("+"): values_of(value) for key, value in asked.items()}
    # A value that is not understood would make the count wrong.
    return {} if [] in grid.values() else {key: values for key, values in grid.items() if len(values) > 1}


def values_of(text: str) -> list[str]:
    """Return the values of an override of a sweep; none where it is more than a list or a range.

    >>> values_of("dpo,sft"), values_of("range(0,3)"), values_of("choice(a,b)")
    (['dpo', 'sft'], ['0', '1', '2'], [])
    """
    if match := RANGE.fullmatch(text.strip()):
        return [str(value) for value in range(int(match[1]), int(match[2]))]
    if "," in text and set(text) & set("()[]{}'\""):
        return []
    return [value.strip() for value in text.split(",")]


def _multirun(folder: Path) -> Mapping[str, object]:
    path = folder / "multirun.yaml"
    return mapping_at(read_yaml(path.read_text(errors="replace")), "hydra") if path.is_file() else {}
