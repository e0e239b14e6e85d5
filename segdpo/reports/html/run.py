"""The part of the report about one run."""

import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segdpo.reports.html.curves import Figure, run_curves
from segdpo.reports.html.files import ImageValues, Overlay, RunFiles, at, number
from segdpo.reports.html.plots import image_figures, reliability
from segdpo.reports.html.text import DASH, METRICS, Verdict, bounds, displacement, plain, signed, tone_of, verdict

WORST = 12


@dataclass(frozen=True)
class MetricRow:
    """A line of the table of results, as text; `tone` colours the difference."""

    name: str
    reference: tuple[str, str]
    policy: tuple[str, str]
    difference: tuple[str, str]
    tone: str
    better: str
    worse: str
    p: str
    n: str


def metric_rows(numbers: Mapping[str, Any], evaluation: Mapping[str, Any]) -> Iterator[MetricRow]:
    """Give a line for each metric that was measured, then the share of images won."""
    measured = [name for part in ("policy", "reference") for name in at(numbers, part) or {}]
    names = [name for name in METRICS if name in measured]
    for name in [*names, *dict.fromkeys(name for name in measured if name not in METRICS)]:
        difference = at(numbers, "difference", name)
        after, before = at(numbers, "policy", name), at(numbers, "reference", name)
        n = at(difference, "n")
        yield MetricRow(
            METRICS.get(name, name),
            (plain(at(before, "mean")), bounds(before)),
            (plain(at(after, "mean")), bounds(after)),
            (signed(at(difference, "mean")), bounds(difference, sign=True)),
            tone_of(difference, name),
            plain(at(difference, "better"), 0),
            plain(at(difference, "worse"), 0),
            _p(at(evaluation, "wilcoxon", name, "p")),
            plain(at(after, "n") if n is None else n, 0),
        )
    wins = at(numbers, "difference", "win_rate")
    if not math.isnan(number(at(wins, "rate"))):
        won = (plain(at(wins, "rate")), bounds(wins))
        yield MetricRow("Images won", ("", ""), won, ("", ""), "open", "", "", "", plain(at(wins, "n"), 0))


def _p(value: object) -> str:
    found = number(value)
    return DASH if math.isnan(found) else "< 0.001" if found < 0.001 else plain(found)


def class_rows(rows: Sequence[Mapping[str, str]]) -> Iterator[tuple[str, ...]]:
    """Give class, metric, and each network's mean with its interval and n."""
    found: dict[tuple[str, str], dict[str, Mapping[str, str]]] = {}
    for row in rows:
        found.setdefault((row.get("class", ""), row.get("metric", "")), {})[row.get("network", "")] = row
    for (name, metric), networks in found.items():
        cells = []
        for network in ("reference", "policy", "difference"):
            found_one = networks.get(network)
            show = signed if network == "difference" else plain
            cells.append(f"{show(at(found_one, 'mean'))} {bounds(found_one, sign=network == 'difference')}".strip())
        n = next((row["n"] for row in reversed(networks.values()) if "n" in row), DASH)
        yield name, METRICS.get(metric, metric), *cells, n


def tax_of(files: RunFiles, numbers: Mapping[str, Any]) -> str:
    """Return how many images pay for the gain of the others, and how much."""
    losses = [change for image in files.evaluation.images if (change := image.change()) < 0]
    counted = sum(math.isfinite(image.change()) for image in files.evaluation.images)
    if counted:
        share = f"{len(losses)} of {counted} images ({100 * len(losses) / counted:.0f} %) got worse in IoU"
        return f"{share}, by {plain(-sum(losses) / len(losses))} on average." if losses else f"{share}."
    difference = at(numbers, "difference", "iou")
    if math.isnan(number(at(difference, "worse"))):
        return ""
    return f"{plain(at(difference, 'worse'), 0)} of {plain(at(difference, 'n'), 0)} images got worse in IoU."


def worst_of(files: RunFiles) -> list[tuple[str, str, str, str]]:
    """Return the images that lost most: id, reference, policy, change."""
    if files.evaluation.images:
        changes = [(image, image.change()) for image in files.evaluation.images]
        lost = sorted([pair for pair in changes if pair[1] < 0], key=lambda pair: pair[1])
        return [
            (image.id, plain(image.iou("reference")), plain(image.iou("policy")), signed(change))
            for image, change in lost[:WORST]
        ]
    # The list is of the first metric that was asked for.
    listed = at(files.evaluation.summary, "worst") if at(files.evaluation.summary, "main") in ("iou", None) else None
    pairs = [pair for pair in listed if isinstance(pair, list) and len(pair) == 2] if isinstance(listed, list) else []
    return [(str(name), DASH, DASH, signed(change)) for name, change in pairs[:WORST]]


WORDS = re.compile(r"[^0-9A-Za-z]+")
Rows = Sequence[Sequence[str]]
# Groups of conf/ that say what a run was about; the others are in its configuration.
TOLD = ("experiment", "experiment/variant", "data", "reference_training",
        "candidates", "judge", "questions", "selection", "task", "loss", "score", "beta",
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
    named = next((words[name] for name in ("experiment/variant", "loss") if words.get(name)), "")
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
