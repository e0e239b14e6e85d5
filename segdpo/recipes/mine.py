"""Mining: make a data set of preferences from images, candidate masks, a judge and questions."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from segdpo.checks import check_choice
from segdpo.data import PackDataset, PackWriter, write_folder
from segdpo.files import DataError
from segdpo.models import check_resolvers
from segdpo.preferences import Journal, Recipe, Summary, journal_path, run_mining
from segdpo.recipes.config import build


def mine_preferences(config: DictConfig, progress: Callable[[int, int], None] = lambda done, total: None) -> Summary:
    """Mine as conf/mine.yaml describes, write a pack or a folder to `config.out`, and return the numbers.

    Interrupted and called again with the same configuration, it resumes and writes the same bytes.

    Args:
        config: conf/mine.yaml, composed.
        progress: called with the number of records done and the number of all.

    Raises:
        ValueError: for an option that cannot be; DataError for data that cannot be mined.
    """
    check_choice("format", config.format, ("pack", "folder"))
    check_resolvers(config)
    resolved: dict[str, Any] = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    rule = build(config.questions)
    if rule is None:
        raise DataError(
            "Expected questions to ask about candidates but got questions=answered, which takes the answers that lie "
            "beside the data; choose others, such as questions=best_worst, or give the data to train.py as it is."
        )
    out = Path(config.out)
    journal = Journal(journal_path(out), {key: value for key, value in resolved.items() if key != "out"})
    if journal.finished and out.exists():
        return journal.summary()
    # A pack can be resumed after an interruption, a folder cannot: it is written at the end, all at once.
    pack = out if config.format == "pack" else out.with_name(f"{out.name}.pack")
    source = build(config.data)
    recipe = Recipe(
        mask_source=build(config.candidates),
        judge=build(config.judge),
        rule=rule,
        seed=config.seed,
        keep_duplicates=config.keep_duplicates,
        ranking=config.ranking,
        background=config.background,
    )
    writer = PackWriter(pack, source.classes)
    summary = run_mining(source, recipe, journal, writer, selection=build(config.selection), progress=progress)
    if config.format == "folder":
        write_folder(out, PackDataset(pack, channels=None), source.classes)
        shutil.rmtree(pack)
    return summary
