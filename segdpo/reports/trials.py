"""The trials of a search: a table for the terminal, and a picture of the best value so far."""

import math

from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table

from segdpo.reports.plots import BLUE, GREY, ORANGE, new_figure, to_bytes

STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running or killed",
    TrialState.WAITING: "waiting",
}


def trials_table(study: Study, metric: str, longest: int = 20) -> Table:
    """Return the best trials for rich, with their values, parameters and states; a pruned one has its last value.

    Args:
        study: the study of the search.
        metric: the name of the value.
        longest: the number of trials to show.
    """
    trials = ranked(study)
    keys = list(dict.fromkeys(key for trial in trials for key in trial.params))
    caption = f"{len(trials) - longest} more in the study" if len(trials) > longest else None
    table = Table(title=f"study {study.study_name}", caption=caption)
    for heading in ("trial", metric, "validations"):
        table.add_column(heading, justify="right")
    for key in keys:
        table.add_column(key, justify="right", overflow="fold")
    table.add_column("state")
    for trial in trials[:longest]:
        state = "diverged" if "diverged" in trial.user_attrs else STATES[trial.state]
        values = [_text(trial.params.get(key)) for key in keys]
        table.add_row(str(trial.number), _text(last_value(trial)), str(len(trial.intermediate_values)), *values, state)
    return table


def trials_png(study: Study, metric: str) -> bytes:
    """Return a picture of every trial's value and of the best so far."""
    figure = new_figure(7, 4)
    axes = figure.add_subplot(xlabel="trial", ylabel=metric, title=f"study {study.study_name}")
    best = best_so_far(study)
    trials = study.get_trials(deepcopy=False)
    for state, colour, marker in ((TrialState.COMPLETE, BLUE, "o"), (TrialState.PRUNED, ORANGE, "x")):
        found = [(trial.number, last_value(trial)) for trial in trials if trial.state is state]
        shown = [(number, value) for number, value in found if value is not None and math.isfinite(value)]
        if shown:
            numbers, values = zip(*shown, strict=True)
            axes.scatter(numbers, values, color=colour, marker=marker, label=STATES[state], s=24)
    if best:
        axes.step(*zip(*best, strict=True), where="post", color=GREY, label="best so far")
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    return to_bytes(figure)


def ranked(study: Study) -> list[FrozenTrial]:
    """Return the trials: complete ones first, the best at the top; then the others in their order."""
    sign = 1 if study.direction is StudyDirection.MINIMIZE else -1
    trials = study.get_trials(deepcopy=False)
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    others = [trial for trial in trials if trial.state is not TrialState.COMPLETE]
    return sorted(complete, key=lambda trial: sign * (trial.value or 0.0)) + others


def last_value(trial: FrozenTrial) -> float | None:
    """Return the value of a trial, or the last one before it was pruned."""
    if trial.value is not None:
        return trial.value
    steps = trial.intermediate_values
    return steps[max(steps)] if steps else None


def best_so_far(study: Study) -> list[tuple[int, float]]:
    """Return the number of each complete trial and the best value until then."""
    best = min if study.direction is StudyDirection.MINIMIZE else max
    points: list[tuple[int, float]] = []
    for trial in study.get_trials(deepcopy=False):
        if trial.state is TrialState.COMPLETE and trial.value is not None:
            points.append((trial.number, best(trial.value, points[-1][1]) if points else trial.value))
    return points


def _text(value: object) -> str:
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
