import io

import optuna
import pytest
from PIL import Image as Pillow

from segdpo.recipes.search import best_overrides
from segdpo.reports.trials import best_so_far, ranked, trials_png, trials_table


@pytest.mark.parametrize(
    ("direction", "order", "best"), [("maximize", [2, 0, 1], [3, 3, 5]), ("minimize", [1, 0, 2], [3, 1, 1])]
)
def test_reports_know_the_direction(direction, order, best):
    study = optuna.create_study(direction=direction, study_name="s")
    for value in (3.0, 1.0, 5.0):
        study.add_trial(optuna.trial.create_trial(value=value, params={}, distributions={}))
    study.add_trial(
        optuna.trial.create_trial(state=optuna.trial.TrialState.PRUNED, intermediate_values={1: 9.0, 2: 8.0})
    )
    assert [trial.number for trial in ranked(study)] == [*order, 3]
    assert best_so_far(study) == list(enumerate(best))
    table = trials_table(study, "val/iou")
    assert list(table.columns[1].cells)[-1] == "8"
    assert list(table.columns[-1].cells)[-1] == "pruned"


def test_a_study_without_a_complete_trial_has_no_best_and_an_empty_picture():
    study = optuna.create_study(study_name="s")
    assert best_overrides(study) == []
    assert Pillow.open(io.BytesIO(trials_png(study, "val/iou"))).format == "PNG"
