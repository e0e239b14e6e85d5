"""The progress bar: one over all steps, short names, right numbers, nothing when disabled."""

import io

import rich
from rich.console import Console

from segdpo.training import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_numbers_in_one_line_of_80(fit, scripted, monkeypatch):
    file = Terminal()
    monkeypatch.setattr(rich, "_console", Console(file=file, width=80, force_terminal=True))
    bar = Progress(per_second=1e9)
    fit(
        scripted([0.125] * 8, ious=[0.5, 0.75]),
        callbacks=[bar],
        max_steps=8,
        enable_progress_bar=True,
    )
    # Two epochs of four steps are one bar; validation came after each.
    last = [line for line in file.getvalue().replace("\r", "\n").splitlines() if "8/8" in line][-1]
    assert "train" in last
    assert "loss 0.250 h +0.50 gain +0.12 IoU 0.750" in last
    assert "acc" not in last
    assert "…" not in last
    assert "validate" in file.getvalue()
    assert "Epoch" not in file.getvalue()


def test_all_numbers_of_a_long_run_fit_into_80_columns(fit, scripted, monkeypatch):
    file = Terminal()
    monkeypatch.setattr(rich, "_console", Console(file=file, width=80, force_terminal=True))
    numbers = " ".join(
        form.format(number) for form, number in zip(Progress()._shown, (0.6, 0.9, 1, -2, 0.7), strict=True)
    )
    monkeypatch.setattr(Progress, "numbers", lambda self, trainer: numbers)
    task = scripted()
    task.at_step[3] = lambda: setattr(task.trainer, "should_stop", True)
    fit(task, callbacks=[Progress(per_second=1e9)], max_steps=12_000, enable_progress_bar=True, limit_val_batches=0)
    assert numbers == "loss 0.600 acc 0.90 h +1.00 gain -2.00 IoU 0.700"
    assert any(numbers in line and "4/12000" in line for line in file.getvalue().splitlines())


def test_a_number_is_read_as_often_as_the_line_is_drawn(fit, scripted, monkeypatch):
    bar = Progress(per_second=1e-6)
    read = []
    monkeypatch.setattr(bar, "numbers", lambda trainer: read.append(trainer.global_step) or "")
    fit(scripted([0.1]), callbacks=[bar], max_steps=7, enable_progress_bar=True, limit_val_batches=0)
    # The first step and the end; not the steps between.
    assert read == [1, 7, 7]


def test_a_disabled_bar_draws_nothing(fit, scripted, capsys):
    bar = Progress()
    bar.disable()
    fit(scripted([0.1]), callbacks=[bar], enable_progress_bar=True)
    assert "train" not in capsys.readouterr().out
    assert bar._display is None


def test_a_log_file_gets_lines_with_the_numbers(fit, scripted, monkeypatch):
    file = io.StringIO()
    # FORCE_COLOR, as continuous integration sets it, makes no terminal of a file.
    monkeypatch.setattr(rich, "_console", Console(file=file, width=80, force_terminal=True))
    fit(scripted([0.125] * 8, ious=[0.5, 0.75]), callbacks=[Progress()], max_steps=8, enable_progress_bar=True)
    lines = file.getvalue().splitlines()
    assert "\r" not in file.getvalue()
    assert lines[-1] == "train 8/8 loss 0.250 h +0.50 gain +0.12 IoU 0.750"
    assert all(line.startswith("train 8/8") for line in lines)
