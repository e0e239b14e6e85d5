"""The Python blocks of the documents run as they stand, and their links lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# These need a trained network: tests/scripts/test_docs.py runs their blocks and commands.
NEEDS_A_RUN = {"deploy.md", "hub.md"}
CONFIGS = sorted((ROOT / "conf").rglob("*.yaml"))


@pytest.mark.untraced
@pytest.mark.parametrize("path", [p for p in DOCUMENTS if p.name not in NEEDS_A_RUN], ids=lambda path: path.name)
def test_python_blocks_run(path, tmp_path, monkeypatch):
    # As at the root of the repository, but what the blocks write stays out of it.
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL):
        exec(compile(block, path.name, "exec"), {})


@pytest.mark.parametrize(
    "path", [*DOCUMENTS, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"], ids=lambda path: path.name
)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        assert target.startswith("https://") or (path.parent / target).exists(), target


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_every_loss_of_the_table_exists():
    table = (ROOT / "docs" / "losses.md").read_text().split("| `loss=` |")[1].split("\n\n")[0]
    names = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert len(names) >= 19
    assert names <= {config.stem for config in (ROOT / "conf" / "loss").glob("*.yaml")}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_config_opens_with_what_it_is_and_the_command_that_uses_it(path):
    opening = [line for line in path.read_text().splitlines()[:8] if not line.startswith("# @package")]
    assert opening[0].startswith("# ")
    # Some groups are used from Python: docs/data.md has the lines around their overrides.
    uses = ("segdpo ", "python ", "overrides=[", "compose(")
    assert any(use in line for line in opening for use in uses if line.startswith("#"))
