"""The content of the HTML report about one run."""

import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segdpo.metrics import Interval
from segdpo.reports.held_out import GAINS, gold_sentence, kept_sentence, wins_of
from segdpo.reports.html.figures import Figure, image_figures, reliability_figures, run_curves
from segdpo.reports.run_files import ImageValues, Overlay, RunFiles, at, interval_at, mapping_at, number
from segdpo.reports.runs import option_of
from segdpo.reports.text import DASH, METRIC_NAMES, bounds, count_of, p_value, plain, signed, typographic, verdict_of

WORST = 12
# The bootstrap interval of fewer images is itself a rough estimate.
FEW = 20
# Options of Hydra that each run of a sweep has of its own.
HYDRA_OWN = ("hydra.mode=", "hydra.sweep.", "hydra.launcher.")
# The groups of conf/ that are shown; the whole configuration has the others.
GROUPS = ("experiment", "experiment/variant", "data", "reference_training", "candidates", "judge", "questions",
          "selection", "task", "loss", "score", "beta", "reference", "adapter", "model", "optimizer", "scheduler",
          "trainer", "transforms")  # fmt: skip

Rows = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Verdict:
    """The result in a few words and a sentence; `tone` is "better", "worse", "open" or "unknown"."""

    tone: str
    lead: str
    rest: str


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


@dataclass(frozen=True, eq=False)
class Picture:
    """An overlay with the id of its image and a caption."""

    overlay: Overlay
    id: str
    caption: str


@dataclass(frozen=True, eq=False)
class RunView:
    """What the page shows of a run; `brief` leaves out images and pictures, so that the page of a sweep stays small."""

    files: RunFiles
    title: str
    verdict: Verdict
    displacement: str
    kept: str
    command: str
    choices: Rows
    facts: Rows
    rows: Sequence[MetricRow]
    curves: Sequence[Figure]
    images: Sequence[Figure]
    calibration: Sequence[Figure]
    pictures: Mapping[str, Sequence[Picture]]
    tax: str
    worst: Rows
    worst_known: bool
    classes: Rows
    missing: Sequence[str]
    brief: bool


def run_view(files: RunFiles, *, brief: bool = False) -> RunView:
    """Return what the page shows of a run."""
    results, contradictions = _results(files)
    evaluation = files.evaluation
    pictures = {} if brief else {kind: _pictures(files, kind) for kind in ("better", "worse", "lowest")}
    worst = _worst(files)
    return RunView(
        files=files,
        title=_title(files),
        verdict=_verdict(results, files.summary),
        displacement=_displacement(number(at(files.summary, "pairs", "chosen_gain"))),
        kept=typographic(
            " ".join(f"{line}." for line in (gold_sentence(files.summary), kept_sentence(files.summary)) if line)
        ),
        command=command_of(files),
        choices=_choices(files),
        facts=list(_facts(files)),
        rows=[*_metric_rows(results, evaluation.summary), *_held_out_rows(files.summary)],
        curves=run_curves(files.series, number(at(files.summary, "validation", "reference", "iou", "mean"))),
        images=[] if brief else image_figures(evaluation.images),
        calibration=[] if brief else reliability_figures(evaluation.summary.get("calibration")),
        pictures={kind: each for kind, each in pictures.items() if each},
        tax=_tax(files, results),
        worst=worst,
        worst_known=bool(worst) or any(math.isfinite(image.change()) for image in evaluation.images),
        classes=list(_class_rows(evaluation.classes)),
        missing=[*files.missing, *contradictions],
        brief=brief,
    )


def command_of(files: RunFiles) -> str:
    """Return the command that started the run, without its folder; nothing where it is not known."""
    extra = at(files.hydra, "overrides", "hydra")
    hydra = [str(word) for word in extra if not str(word).startswith(HYDRA_OWN)] if isinstance(extra, list) else []
    known = files.overrides or isinstance(at(files.hydra, "overrides", "task"), list)
    return shlex.join(["segdpo", "train", *files.overrides, *hydra, *_config_dirs(files)]) if known or hydra else ""


def _config_dirs(files: RunFiles) -> list[str]:
    """Return the words that added folders to the configuration."""
    sources = at(files.hydra, "runtime", "config_sources")
    own = [one for one in sources if at(one, "provider") == "command-line"] if isinstance(sources, list) else []
    return [word for one in own for word in ("--config-dir", str(at(one, "path")))]


def _results(files: RunFiles) -> tuple[Mapping[str, Any], list[str]]:
    """Return the results of evaluation/, completed by those of summary.json, and lines on where the two differ."""
    summary, evaluation = files.summary, files.evaluation.summary
    results = {
        part: found
        for part in ("policy", "reference", "difference")
        if (found := {**mapping_at(summary, part), **mapping_at(evaluation, part)})
    }
    lines = []
    for part in ("policy", "reference"):
        one, other = (number(at(source, part, "iou", "mean")) for source in (summary, evaluation))
        if abs(one - other) > 1e-6:
            lines.append(
                f"summary.json and evaluation/ disagree about the {part}’s IoU ({plain(one)}, {plain(other)}): they "
                "were written at different times. The table shows evaluation/."
            )
        if summary and "policy" in results and math.isnan(number(at(results, part, "iou", "mean"))):
            lines.append(f"The {part}’s IoU is not a number: nothing can be compared.")
    return results, lines


def _title(files: RunFiles) -> str:
    choices = dict(_choices(files))
    name = next((choices[group] for group in ("experiment/variant", "loss") if choices.get(group)), "")
    seed = at(files.summary, "seed") if "seed" in files.summary else at(files.config, "seed")
    parts = [part for part in (name, f"seed {seed}" if seed is not None else "") if part]
    return ", ".join(parts) or files.folder.resolve().name


def _verdict(results: Mapping[str, Any], summary: Mapping[str, Any]) -> Verdict:
    """Return whether the policy is better than the reference, in IoU over the test images; else what is known."""
    if at(summary, "gold", "with_gold") == 0:
        return _verdict_without_gold(summary)
    difference = interval_at(results, "difference", "iou")
    policy, reference = (interval_at(results, part, "iou") for part in ("policy", "reference"))
    if math.isnan(difference.mean):
        return _verdict_without_difference(policy, reference)
    means = f"{plain(policy.mean)} against the reference’s {plain(reference.mean)}"
    better, worse = (plain(number(at(results, "difference", "iou", key)), 0) for key in ("better", "worse"))
    details = f"{means}; better on {better}, worse on {worse}."
    images = count_of(difference.n, "test image") if difference.n else "an unknown number of test images"
    tone = verdict_of(difference)
    if tone == "unknown":
        lead = f"{signed(difference.mean)} IoU on {images}"
        return Verdict("unknown", lead, f"without an interval: so few images say nothing about others. {details}")
    lead = {
        "better": f"Better by {plain(difference.mean)} IoU",
        "worse": f"Worse by {plain(-difference.mean)} IoU",
        "open": f"No clear difference: {signed(difference.mean)} IoU",
    }[tone]
    few = " With so few images the interval itself is a rough one." if difference.n < FEW else ""
    return Verdict(tone, lead, f"{bounds(difference, sign=True)} over {images}: {details}{few}")


def _verdict_without_gold(summary: Mapping[str, Any]) -> Verdict:
    gains = {name: interval_at(summary, "held_out", gain) for gain, name in GAINS.items()}
    tones = {verdict_of(gain) for gain in gains.values()}
    # Both gains have to be shown; one loss is enough.
    tone = next(found for found in ("worse", "unknown", "open", "better") if found in tones)
    lead = {
        "better": "More like the chosen masks",
        "worse": "Less like the chosen masks",
        "open": "No clear difference in held-out judgements",
        "unknown": "Too few held-out judgements to say",
    }[tone]
    shown = "; ".join(f"{name} {signed(gain.mean)} {bounds(gain, sign=True)}".strip() for name, gain in gains.items())
    judged = count_of(int(number(at(summary, "held_out", "judgements"))), "held-out judgement")
    return Verdict(tone, lead, f"{shown} over {judged}. {gold_sentence(summary)}.")


def _verdict_without_difference(policy: Interval, reference: Interval) -> Verdict:
    if math.isnan(policy.mean):
        return Verdict("unknown", "No result", "the policy’s IoU with gold is not known; see what is missing.")
    unknown = "the reference’s" if math.isnan(reference.mean) else "the difference"
    images = f"{bounds(policy)} over {count_of(policy.n, 'test image')}".lstrip()
    return Verdict("unknown", f"IoU {plain(policy.mean)}", f"{images}; {unknown} is not known.")


def _displacement(chosen_gain: float) -> str:
    if math.isnan(chosen_gain):
        return ""
    if chosen_gain < 0:
        return (
            "Displaced: on the test pairs the policy scores the chosen masks lower than the reference did "
            f"(chosen gain {signed(chosen_gain)})."
        )
    return f"No displacement: on the test pairs the chosen gain is {signed(chosen_gain)}."


def _metric_rows(results: Mapping[str, Any], evaluation: Mapping[str, Any]) -> Iterator[MetricRow]:
    """Yield a line for each metric that was measured, then the share of images won."""
    measured = [name for part in ("policy", "reference") for name in mapping_at(results, part)]
    for name in dict.fromkeys([*(name for name in METRIC_NAMES if name in measured), *measured]):
        policy, reference, difference = (
            interval_at(results, part, name) for part in ("policy", "reference", "difference")
        )
        better, worse = (plain(number(at(results, "difference", name, key)), 0) for key in ("better", "worse"))
        n = difference.n or policy.n
        yield MetricRow(
            METRIC_NAMES.get(name, name),
            (plain(reference.mean), bounds(reference)),
            (plain(policy.mean), bounds(policy)),
            (signed(difference.mean), bounds(difference, sign=True)),
            verdict_of(difference, name),
            better,
            worse,
            p_value(number(at(evaluation, "wilcoxon", name, "p"))),
            str(n) if n else DASH,
        )
    rate = number(at(results, "difference", "win_rate", "rate"))
    if not math.isnan(rate):
        wins = interval_at(results, "difference", "win_rate")
        yield MetricRow("images won", ("", ""), (plain(rate), bounds(wins)), ("", ""), "open", "", "", "", str(wins.n))


def _held_out_rows(summary: Mapping[str, Any]) -> Iterator[MetricRow]:
    """Yield the gains in held-out judgements, and the share of judged images won."""
    empty = ("", "")
    for gain, name in GAINS.items():
        found = interval_at(summary, "held_out", gain)
        if not math.isnan(found.mean):
            change = signed(found.mean), bounds(found, sign=True)
            yield MetricRow(f"{name}, held out", empty, empty, change, verdict_of(found), "", "", "", str(found.n))
    wins = wins_of(summary)
    if not math.isnan(wins.mean):
        share = plain(wins.mean), bounds(wins)
        yield MetricRow("judged images won", empty, share, empty, "open", "", "", "", str(wins.n))


def _class_rows(rows: Sequence[Mapping[str, str]]) -> Iterator[tuple[str, ...]]:
    """Yield class, metric, the means of reference, policy and difference with their intervals, and n."""
    found: dict[tuple[str, str], dict[str, Mapping[str, str]]] = {}
    for row in rows:
        found.setdefault((row.get("class", ""), row.get("metric", "")), {})[row.get("network", "")] = row
    for (name, metric), networks in found.items():
        cells = []
        for network in ("reference", "policy", "difference"):
            interval, sign = interval_at(networks, network), network == "difference"
            mean = signed(interval.mean) if sign else plain(interval.mean)
            cells.append(f"{mean} {bounds(interval, sign=sign)}".strip())
        n = next((row["n"] for row in reversed(networks.values()) if "n" in row), DASH)
        yield name, METRIC_NAMES.get(metric, metric), *cells, n


def _tax(files: RunFiles, results: Mapping[str, Any]) -> str:
    """Return how many images got worse, and by how much."""
    changes = [image.change() for image in files.evaluation.images]
    losses = [change for change in changes if change < 0]
    counted = sum(map(math.isfinite, changes))
    if counted:
        share = f"{len(losses)} of {counted} images ({100 * len(losses) / counted:.0f} %) got worse in IoU"
        return f"{share}, by {plain(-sum(losses) / len(losses))} on average." if losses else f"{share}."
    worse = number(at(results, "difference", "iou", "worse"))
    n = interval_at(results, "difference", "iou").n
    return "" if math.isnan(worse) else f"{plain(worse, 0)} of {n} images got worse in IoU."


def _worst(files: RunFiles) -> Rows:
    """Return the images that lost most: id, reference, policy, change."""
    if files.evaluation.images:
        changes = [(image.change(), image) for image in files.evaluation.images]
        lost = sorted([pair for pair in changes if pair[0] < 0], key=lambda pair: pair[0])
        return [
            (image.id, plain(image.iou("reference")), plain(image.iou("policy")), signed(change))
            for change, image in lost[:WORST]
        ]
    # The summary lists the images that lost most in the first metric, which need not be IoU.
    summary = files.evaluation.summary
    listed = at(summary, "worst") if at(summary, "main") in ("iou", None) else None
    pairs = [pair for pair in listed if isinstance(pair, list) and len(pair) == 2] if isinstance(listed, list) else []
    return [(str(name), DASH, DASH, signed(number(change))) for name, change in pairs[:WORST]]


def _choices(files: RunFiles) -> list[tuple[str, str]]:
    """Return the choice from each group of conf/ under the names that groups have today."""
    named = mapping_at(files.hydra, "runtime", "choices") or files.summary
    found = dict(option_of(word) for word in files.overrides)
    found |= dict(option_of(f"{key}={value}") for key, value in named.items() if isinstance(value, str | int | float))
    return [(name, found[name]) for name in GROUPS if found.get(name)]


def _facts(files: RunFiles) -> Iterator[tuple[str, str]]:
    """Yield counts, accuracy, seconds and versions."""
    pairs = at(files.summary, "pairs")
    for key, name, digits in (
        ("train", "images with preferences", 0), ("judgements", "judgements", 0), ("test", "test images", 0),
        ("accuracy", "pair accuracy, test", 3), ("margin", "margin h, test", 3),
    ):  # fmt: skip
        if not math.isnan(value := number(at(pairs, key))):
            yield name, plain(value, digits)
    if (steps := at(files.config, "trainer", "max_steps")) is not None:
        yield "steps of the policy", str(steps)
    for name, value in mapping_at(files.summary, "seconds").items():
        yield f"seconds, {name}", plain(number(value), 1)
    for name, value in mapping_at(files.summary, "versions").items():
        yield f"version, {name}", str(value)
    if hydra := at(files.hydra, "runtime", "version"):
        yield "version, hydra", str(hydra)


def _pictures(files: RunFiles, kind: str) -> list[Picture]:
    """Return the overlays of a kind, with the values of their images where the file's name identifies one."""
    images: dict[str, list[ImageValues]] = {}
    for image in files.evaluation.images:
        images.setdefault(_in_file_name(image.id), []).append(image)
    pictures = []
    for overlay in (overlay for overlay in files.evaluation.overlays if overlay.kind == kind):
        known = images.get(_in_file_name(overlay.name), [])
        one = known[0] if len(known) == 1 else None
        pictures.append(Picture(overlay, one.id if one else overlay.name, _caption(one) if one else ""))
    return pictures


def _in_file_name(name: str) -> str:
    """Return the part of an id that is kept in the name of a file."""
    return re.sub(r"[^0-9A-Za-z]+", "", name)[-40:]


def _caption(image: ImageValues) -> str:
    if math.isnan(image.change()):
        return f"IoU {plain(image.iou('policy'))}"
    return f"IoU {plain(image.iou('reference'))} → {plain(image.iou('policy'))} ({signed(image.change())})"
