"""The example of docs/metrics.md runs, and its tables name what there is."""

import re
from pathlib import Path

import pytest

from segdpo.metrics.masks import MASK_METRICS
from segdpo.metrics.pair_quality import PairQuality

TEXT = (Path(__file__).parents[2] / "docs/metrics.md").read_text()


def names_under(heading):
    section = TEXT.split(f"\n## {heading}\n")[1].split("\n#")[0]
    first_cells = re.findall(r"^\| (`[^|]*) \|", section, re.MULTILINE)
    return [name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)]


def test_the_example_runs(capsys):
    (block,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(block, {})
    difference, _, quality = capsys.readouterr().out.splitlines()
    # 12 × 12 shifted by 1 and by 3 columns: 11/13 and 9/15.
    assert float(re.search("mean=([^,]*)", difference)[1]) == pytest.approx(11 / 13 - 9 / 15)
    assert quality.startswith("tensor(1.)")


def test_all_metrics_are_explained():
    assert sorted(names_under("Masks")) == sorted(MASK_METRICS)
    assert {*names_under("Pairs"), "pairs"} == set(PairQuality().compute())
