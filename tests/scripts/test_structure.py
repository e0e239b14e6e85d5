"""The signs that `make structure` prints."""

from pathlib import Path

import pytest
import structure


@pytest.mark.untraced
def test_the_files_of_a_step_are_those_from_data_to_loss():
    passed = structure.files_of_one_step()
    for name in (
        "data/datasets.py",
        "data/batches.py",
        "scores/pairs.py",
        "losses/objectives.py",
        "training/preference.py",
    ):
        assert f"segdpo/{name}" in passed
    assert "segdpo/recipes/run.py" not in passed
    assert not any("/rl/" in name or "/reports/" in name for name in passed)


def test_helpers_of_one_sibling(tmp_path, monkeypatch):
    """b serves a alone; c serves two; d is listed by the package; e serves a module of another package."""
    files = {
        "segdpo/p/__init__.py": "from segdpo.p.d import x",
        "segdpo/p/a.py": "from segdpo.p.b import x\nimport segdpo.p.c\nfrom segdpo.p import d",
        "segdpo/p/b.py": "from segdpo.p.c import x",
        **{f"segdpo/p/{name}.py": "" for name in "cde"},
        "segdpo/q/f.py": "from segdpo.p.e import x",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(structure, "ROOT", tmp_path)
    found = structure.helpers_of_one_sibling(sorted(Path(tmp_path).rglob("*.py")))
    assert found == {"segdpo.p.b": "segdpo.p.a"}
