"""Mine preferences: candidates × a judge × questions → a data set on disk, and a report on the sources."""

import shutil
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from segdpo.checks import check_choice
from segdpo.data import PackDataset, PackWriter, write_folder
from segdpo.files import DataError
from segdpo.models import check_resolvers
from segdpo.preferences import (
    Journal,
    Mining,
    Summary,
    asks_network,
    journal_path,
    run_mining,
    with_network,
)
from segdpo.progress import Bars
from segdpo.recipes.config import build
from segdpo.reports import sources_table


def run_mine(config: DictConfig) -> None:
    """Mine as conf/mine.yaml says and print the report; exit status 1 when something is wrong with the data.

    Interrupted at any moment and started again with the same settings, it resumes and writes the same bytes.
    """
    console = Console()
    try:
        check_choice("format", config.format, ("pack", "folder"))
        summary = mine_to_disk(config, console)
    except ValueError as error:
        sys.exit(f"{error}")
    console.print(sources_table(summary.sources))
    console.print(
        f"[bold]{config.out}[/bold]: {summary.mined} of {summary.selected} images, {summary.masks} masks, "
        f"{summary.pairs} pairs"
    )
    for reason, count in summary.skipped.items():
        console.print(f"  skipped {count}: {reason} (first: {summary.examples[reason]})", markup=False)


def mine_to_disk(config: DictConfig, console: Console) -> Summary:
    """Mine into a pack, or through a pack into a folder, and return the run in numbers."""
    out = Path(config.out)
    check_resolvers(config)
    questions = build(config.questions)
    if questions is None:
        raise DataError(
            "Expected questions to ask about candidates but got questions=answered, which takes the preferences that "
            "the data came with; choose another, such as questions=best_worst, or give the data to train.py as it is."
        )
    settings = _plain(OmegaConf.masked_copy(config, [str(key) for key in config if key not in ("out", "predictor")]))
    candidates, selection = build(config.candidates), build(config.selection)
    asks = asks_network(candidates) or asks_network(selection)
    if asks:
        settings["predictor"] = _plain(config.predictor)
    journal = Journal(journal_path(out), settings)
    if journal.finished and out.exists():
        return journal.summary()
    # An interrupted pack can be continued, a folder cannot: the folder is written at the end, all at once.
    pack = out if config.format == "pack" else out.with_name(f"{out.name}.pack")
    source = build(config.data)
    network = build(config.predictor) if asks else None
    mining = Mining(
        candidates=with_network(candidates, network),
        judge=build(config.judge),
        questions=questions,
        seed=config.seed,
        keep_duplicates=config.keep_duplicates,
        background=config.background,
    )
    with Bars(console) as bars:
        summary = run_mining(
            source,
            mining,
            journal,
            PackWriter(pack, source.classes),
            selection=with_network(selection, network),
            progress=lambda done, total: bars.update("mining", done, total),
        )
    if config.format == "folder":
        write_folder(out, PackDataset(pack, channels=None), source.classes)
        shutil.rmtree(pack)
    return summary


def _plain(node: DictConfig) -> dict[str, Any]:
    """Return the node as plain dicts and lists, or say which value is missing."""
    found: dict[str, Any] = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    return found
