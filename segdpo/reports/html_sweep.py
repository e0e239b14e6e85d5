"""Several runs as the report shows them: groups over seeds, what is missing among them, curves on common axes."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segdpo.reports.html_curves import Bundle, Figure, group_curves
from segdpo.reports.html_files import RunFiles
from segdpo.reports.html_groups import GroupTable, group_table, said_of
from segdpo.reports.html_planned import command_of_sweep, missing_seeds, not_started
from segdpo.reports.html_plots import seed_figure
from segdpo.reports.html_run import RunView, view_of
from segdpo.reports.html_text import Verdict, bounds, images, plain, signed, tone_of
from segdpo.reports.html_tolerant import at, number
from segdpo.reports.sweep import NOT_GROUPED, Group, Run, Sweep, best_first, group_runs, read_run
from segdpo.reports.sweep_contrasts import contrasts

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
