"""One run as the report shows it: words, rows and pictures, ready for the template."""

import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segdpo.reports.html_curves import Figure, run_curves
from segdpo.reports.html_files import ImageValues, RunFiles
from segdpo.reports.html_overlays import Overlay
from segdpo.reports.html_plots import image_figures, reliability
from segdpo.reports.html_rows import MetricRow, class_rows, metric_rows, tax_of, worst_of
from segdpo.reports.html_text import Verdict, displacement, plain, signed, verdict
from segdpo.reports.html_tolerant import at, number

WORDS = re.compile(r"[^0-9A-Za-z]+")
Rows = Sequence[Sequence[str]]
# Groups of conf/ that say what a run was about; the others are in its configuration.
TOLD = ("experiment", "cell", "data", "start", "pairs", "judge", "rule", "selection", "task", "loss", "score", "beta",
        "reference", "adapter", "model", "optimizer", "scheduler", "trainer", "transforms")  # fmt: skip
HYDRA_OWN = ("hydra.mode=", "hydra.sweep.", "hydra.launcher.")


@dataclass(frozen=True, eq=False)
class Picture:
    """An overlay and what is said below it."""

    overlay: Overlay
    id: str
    said: str


@dataclass(frozen=True, eq=False)
class RunView:
    """A run; `brief` leaves out what makes the page of a large sweep heavy."""

    files: RunFiles
    title: str
    verdict: Verdict
    displaced: str
    command: str
    choices: Rows
    facts: Rows
    rows: Sequence[MetricRow]
    curves: Sequence[Figure]
    spread: Sequence[Figure]
    calibration: Sequence[Figure]
    pictures: Mapping[str, Sequence[Picture]]
    tax: str
    worst: Sequence[tuple[str, str, str, str]]
    worst_known: bool
    classes: Rows
    missing: Sequence[str]
    brief: bool


def view_of(files: RunFiles, *, brief: bool = False) -> RunView:
    """Return what the report says of a run."""
    numbers, missing = _numbers(files)
    pictures = {} if brief else {kind: _pictures(files, kind) for kind in ("better", "worse", "lowest")}
    worst = worst_of(files)
    return RunView(
        files=files,
        title=_title(files),
        verdict=verdict(numbers),
        displaced=displacement(at(files.summary, "pairs", "chosen_gain")),
        command=command_of(files),
        choices=choices_of(files),
        facts=list(_facts(files)),
        rows=list(metric_rows(numbers, files.evaluation.summary)),
        curves=run_curves(files.series, number(at(files.summary, "validation", "reference", "iou", "mean"))),
        spread=[] if brief else image_figures(files.evaluation.images),
        calibration=[] if brief else reliability(files.evaluation.summary.get("calibration")),
        pictures={kind: each for kind, each in pictures.items() if each},
        tax=tax_of(files, numbers),
        worst=worst,
        worst_known=bool(worst) or any(math.isfinite(image.change()) for image in files.evaluation.images),
        classes=list(class_rows(files.evaluation.classes)),
        missing=[*files.missing, *missing],
        brief=brief,
    )


def _numbers(files: RunFiles) -> tuple[Mapping[str, Any], list[str]]:
    """Return the results, those of evaluation/ first since it has more of them, and where the two disagree."""
    summary, evaluation = files.summary, files.evaluation.summary
    numbers = {
        part: {**(at(summary, part) or {}), **(at(evaluation, part) or {})}
        for part in ("policy", "reference", "difference")
        if isinstance(at(summary, part), Mapping) or isinstance(at(evaluation, part), Mapping)
    }
    said = []
    for part in ("policy", "reference"):
        one, two = (number(at(source, part, "iou", "mean")) for source in (summary, evaluation))
        if abs(one - two) > 1e-6:
            said.append(
                f"summary.json and evaluation/ disagree about the {part}’s IoU ({plain(one)}, {plain(two)}): one of "
                "them is of another time. The table shows evaluation/."
            )
    if summary and "policy" in numbers:
        for part in ("policy", "reference"):
            if math.isnan(number(at(numbers, part, "iou", "mean"))):
                said.append(f"The {part}’s IoU is not a number: nothing can be compared.")
    return numbers, said


def _title(files: RunFiles) -> str:
    words = dict(choices_of(files))
    named = next((words[name] for name in ("cell", "loss") if words.get(name)), "")
    seed = at(files.summary, "seed") if "seed" in files.summary else at(files.config, "seed")
    said = [part for part in (named, f"seed {seed}" if seed is not None else "") if part]
    return ", ".join(said) or files.folder.resolve().name


def command_of(files: RunFiles) -> str:
    """Return the command that the run was started with, its folder aside."""
    extra = at(files.hydra, "overrides", "hydra")
    hydra = [str(word) for word in extra if not str(word).startswith(HYDRA_OWN)] if isinstance(extra, list) else []
    known = files.overrides or isinstance(at(files.hydra, "overrides", "task"), list)
    return shlex.join(["python", "train.py", *files.overrides, *hydra]) if known or hydra else ""


def choices_of(files: RunFiles) -> list[tuple[str, str]]:
    """Return what was chosen from each group, in the order of the story."""
    found = at(files.hydra, "runtime", "choices")
    choices = found if isinstance(found, Mapping) else files.summary
    words = dict(word.lstrip("+").partition("=")[::2] for word in files.overrides)
    return [
        (name, str(value))
        for name in TOLD
        if isinstance(value := choices.get(name) or words.get(name), str | int | float)
    ]


def _facts(files: RunFiles) -> Iterator[tuple[str, str]]:
    """Give what else is worth knowing of a run: judgements, steps, seconds, versions."""
    pairs = at(files.summary, "pairs")
    for key, name in (("train", "images judged"), ("judgements", "judgements"), ("test", "test images")):
        if not math.isnan(value := number(at(pairs, key))):
            yield name, plain(value, 0)
    for key, name in (("accuracy", "pair accuracy, test"), ("margin", "margin h, test")):
        if not math.isnan(value := number(at(pairs, key))):
            yield name, plain(value)
    if (steps := at(files.config, "trainer", "max_steps")) is not None:
        yield "steps of the policy", str(steps)
    seconds = at(files.summary, "seconds")
    for name, value in seconds.items() if isinstance(seconds, Mapping) else ():
        yield f"seconds, {name}", plain(value, 1)
    versions = at(files.summary, "versions")
    for name, value in versions.items() if isinstance(versions, Mapping) else ():
        yield f"version, {name}", str(value)
    if hydra := at(files.hydra, "runtime", "version"):
        yield "version, hydra", str(hydra)


def _pictures(files: RunFiles, kind: str) -> list[Picture]:
    """Return the overlays of a kind with what images.csv says of each, where its file's name tells which it is."""
    by_name: dict[str, list[ImageValues]] = {}
    for image in files.evaluation.images:
        by_name.setdefault(_bare(image.id), []).append(image)
    pictures = []
    for overlay in files.evaluation.overlays:
        if overlay.kind == kind:
            known = by_name.get(_bare(overlay.name), [])
            said = "" if len(known) != 1 else _said(known[0])
            pictures.append(Picture(overlay, known[0].id if len(known) == 1 else overlay.name, said))
    return pictures


def _bare(name: str) -> str:
    """Return what of an id survives in a file's name."""
    return WORDS.sub("", name)[-40:]


def _said(image: ImageValues) -> str:
    if math.isnan(image.change()):
        return f"IoU {plain(image.iou('policy'))}"
    return f"IoU {plain(image.iou('reference'))} → {plain(image.iou('policy'))} ({signed(image.change())})"
