"""The trials of a search: a table for the terminal, and a picture of how the best got better."""

import io
import math

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table

from segdpo.reports.curves import BLUE, GREY, ORANGE

WORDS = {
    TrialState.COMPLETE: "whole",
    TrialState.PRUNED: "given up",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running or killed",
    TrialState.WAITING: "waiting",
}


def ranked(study: Study) -> list[FrozenTrial]:
    """Return the trials: whole ones first, best first; then the rest as they came."""
    sign = 1 if study.direction is StudyDirection.MINIMIZE else -1
    trials = study.get_trials(deepcopy=False)
    whole = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    rest = [trial for trial in trials if trial.state is not TrialState.COMPLETE]
    return sorted(whole, key=lambda trial: sign * (trial.value or 0.0)) + rest


def trials_table(study: Study, metric: str, longest: int = 20) -> Table:
    """Return the best trials and what became of them; a given up one shows the value that it was given up at."""
    trials = ranked(study)
    keys = list(dict.fromkeys(key for trial in trials for key in trial.params))
    caption = f"{len(trials) - longest} more in the study" if len(trials) > longest else None
    table = Table(title=f"study {study.study_name}", caption=caption)
    table.add_column("trial", justify="right")
    table.add_column(metric, justify="right")
    table.add_column("validations", justify="right")
    for key in keys:
        table.add_column(key, justify="right", overflow="fold")
    table.add_column("state")
    for trial in trials[:longest]:
        state = "diverged" if "diverged" in trial.user_attrs else WORDS[trial.state]
        values = [_short(trial.params.get(key)) for key in keys]
        table.add_row(str(trial.number), _short(last_value(trial)), str(len(trial.intermediate_values)), *values, state)
    return table


def last_value(trial: FrozenTrial) -> float | None:
    """Return what a trial ended with: its value, or the last one before it was given up."""
    if trial.value is not None:
        return trial.value
    steps = trial.intermediate_values
    return steps[max(steps)] if steps else None


def history_picture(study: Study, metric: str) -> bytes:
    """Return a PNG: every trial's value, and the best so far."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="trial", ylabel=metric, title=f"study {study.study_name}")
    whole = [(t.number, t.value) for t in study.get_trials(deepcopy=False) if t.value is not None and not _pruned(t)]
    given_up = [(t.number, last_value(t)) for t in study.get_trials(deepcopy=False) if _pruned(t)]
    for points, colour, marker, label in ((whole, BLUE, "o", "whole"), (given_up, ORANGE, "x", "given up")):
        shown = [(number, value) for number, value in points if value is not None and math.isfinite(value)]
        if shown:
            numbers, values = zip(*shown, strict=True)
            axes.scatter(numbers, values, color=colour, marker=marker, label=label, s=24)
    if whole:
        axes.step(*zip(*best_so_far(study), strict=True), where="post", color=GREY, label="best so far")
    if whole or given_up:
        axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120, format="png")
    return buffer.getvalue()


def best_so_far(study: Study) -> list[tuple[int, float]]:
    """Return the best value after each whole trial."""
    best = min if study.direction is StudyDirection.MINIMIZE else max
    points: list[tuple[int, float]] = []
    for trial in study.get_trials(deepcopy=False):
        if trial.state is TrialState.COMPLETE and trial.value is not None:
            points.append((trial.number, best(trial.value, points[-1][1]) if points else trial.value))
    return points


def _pruned(trial: FrozenTrial) -> bool:
    return trial.state is TrialState.PRUNED


def _short(value: object) -> str:
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
