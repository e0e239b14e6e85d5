"""The warning about displacement comes once, at the step that counting by hand gives."""

import logging

import pytest

from segdpo.training import Displacement, MetricsFile


def warnings_in(caplog):
    return [record.getMessage() for record in caplog.records if "displacement" in record.getMessage()]


def test_it_warns_once_with_numbers_and_a_fix(fit, scripted, caplog, tmp_path):
    # The mean of 3 is below −.1 from the fifth value on (0 + −.2 + −.4 over 3 = −.2), for the third time at the 7th.
    gains = [0.1, 0.2, 0.0, -0.2, -0.4, -0.4, -0.5, -0.6, -0.6, -0.7]
    means = [sum(gains[k - 2 : k + 1]) / 3 for k in range(2, 10)]
    assert [mean < -0.1 for mean in means] == [False, False, True, True, True, True, True, True]
    watcher = Displacement(threshold=-0.1, window=3, patience=3)
    with caplog.at_level(logging.WARNING):
        fit(scripted(gains), callbacks=[watcher], max_steps=10, logger=MetricsFile(tmp_path))
    (message,) = warnings_in(caplog)
    assert "by step 7" in message
    assert f"chosen gain {sum(gains[4:7]) / 3:+.3g}, below -0.1" in message
    assert "grew (h +0.5)" in message
    assert "hinge_anchor, lse_anchor or dpo_nll" in message
    assert "beta" in message
    assert "optimizer.lr=1 now" in message
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("train/displaced")
    assert [line.split(",")[column] for line in lines[1:]] == ["0.0"] * 6 + ["1.0"] * 4


def test_a_short_dip_gives_no_warning(fit, scripted, caplog):
    # Means of two: −.45, −1, .25, 1, 0, 0, 0, 0: below −.1 twice in a row, not three times.
    gains = [0.1, -1.0, -1.0, 1.5, 0.5, -0.5, 0.5, -0.5, 0.5]
    with caplog.at_level(logging.WARNING):
        fit(scripted(gains), callbacks=[Displacement(threshold=-0.1, window=2, patience=3)], max_steps=9)
    assert warnings_in(caplog) == []


def test_only_logged_steps_count(fit, scripted, caplog):
    # Logged each second step: values 1, 3, 5, 7 are logged; those between never reach the window.
    gains = [-9.0, 0.1] * 4
    watcher = Displacement(window=2, patience=1)
    with caplog.at_level(logging.WARNING):
        fit(scripted(gains), callbacks=[watcher], max_steps=8, log_every_n_steps=2)
    assert warnings_in(caplog) == []
    assert watcher.mean == pytest.approx(0.1)


def test_accumulated_batches_are_one_step(fit, scripted):
    watcher = Displacement(window=100)
    fit(scripted([-1.0]), callbacks=[watcher], max_steps=3, accumulate_grad_batches=2, batches=8)
    assert len(watcher.state_dict()["gains"]) == 3


def test_a_resumed_run_neither_forgets_nor_repeats(caplog):
    first, second = (Displacement(threshold=0, window=2, patience=2) for _ in range(2))
    assert [first.update(-1.0) for _ in range(2)] == [False, False]
    second.load_state_dict(first.state_dict())
    assert second.update(-1.0)
    second.displaced = True
    third = Displacement(threshold=0, window=2, patience=2)
    third.load_state_dict(second.state_dict())
    assert third.displaced


def test_a_loss_without_a_reference_has_no_gain(fit, scripted, caplog):
    with caplog.at_level(logging.WARNING):
        fit(scripted(), callbacks=[Displacement(window=1, patience=1)])
    assert warnings_in(caplog) == []


def test_a_window_of_0_is_refused():
    with pytest.raises(ValueError, match="window and patience of at least 1 but got 0 and 3"):
        Displacement(window=0)
