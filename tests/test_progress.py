"""Progress: bars in a terminal, lines elsewhere."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

import segdpo
from segdpo.progress import Bars, track


class Terminal(io.StringIO):
    def isatty(self):
        return True


def lines_of(seconds, updates, **options):
    """What is written when the clock shows these seconds at the beginning and at each update."""
    file = io.StringIO()
    clock = iter(seconds).__next__
    with Bars(Console(file=file, force_terminal=True), clock=clock, **options) as bars:
        for done, total in updates:
            bars.update("mining", done, total)
    return file.getvalue().splitlines()


def test_a_line_every_ten_seconds_and_one_at_the_end():
    updates = [(done, 5) for done in (1, 2, 3, 4, 5)]
    assert lines_of([0, 1, 10, 15, 21, 22], updates) == ["mining 2/5", "mining 4/5", "mining 5/5"]


@pytest.mark.parametrize(("last", "expected"), [(3, []), (12, ["preferences 2/2"])])
def test_short_transient_work_gives_no_line(monkeypatch, last, expected):
    file, clock = io.StringIO(), iter([0.0, 0.0, 1.0, float(last)])
    monkeypatch.setattr(Bars.__init__, "__kwdefaults__", {**Bars.__init__.__kwdefaults__, "clock": lambda: next(clock)})
    assert list(track([1, 2], "preferences", console=Console(file=file), transient=True)) == [1, 2]
    assert file.getvalue().splitlines() == expected


def test_work_of_unknown_length_is_counted():
    assert lines_of([0, 11, 22], [(7, None), (9, None)]) == ["mining 7", "mining 9"]


def test_a_terminal_gets_a_bar():
    file = Terminal()
    assert list(track(iter("ab"), "reading", total=2, console=Console(file=file, force_terminal=True))) == ["a", "b"]
    assert "━" in file.getvalue()
    assert "2/2" in file.getvalue()


def test_nothing_else_draws_progress():
    """One place decides what is a terminal."""
    package = Path(segdpo.__file__).parent
    users = [path.name for path in package.rglob("*.py") if re.search(r"rich\.progress|tqdm import", path.read_text())]
    assert sorted(users) == ["progress.py", "sources.py"]  # sources.py: in the docs of a parameter
