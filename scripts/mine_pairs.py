"""Mine preferences: sources of masks × a judge × a rule → a data set on disk, and a report on the sources.

    python scripts/mine_pairs.py data=shapes candidates=corruptions judge=iou questions=best_worst out=outputs/mined

Killed at any moment and started again with the same settings, it goes on, to the same bytes. conf/mine.yaml has it all.
"""

import math
import shutil
import sys
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from segdpo.checks import check_choice
from segdpo.data import PackDataset, PackWriter, write_folder
from segdpo.files import DataError
from segdpo.models import check_resolvers
from segdpo.preferences import Journal, Recipe, SourceReport, Summary, journal_path, run_mining
from segdpo.recipes import build


@hydra.main(version_base=None, config_path="../conf", config_name="mine")
def main(config: DictConfig) -> None:
    """Mine as `config` says; exit status 1 when something is wrong with the data."""
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
    """Mine into a pack, from there to a folder where one is wanted, and return the run in numbers."""
    out = Path(config.out)
    check_resolvers(config)
    resolved: dict[str, Any] = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    rule = build(config.questions)
    if rule is None:
        raise DataError(
            "Expected questions to ask about candidates but got questions=answered, which takes the preferences that "
            "the data came with; choose another, such as questions=best_worst, or give the data to train.py as it is."
        )
    journal = Journal(journal_path(out), {key: value for key, value in resolved.items() if key != "out"})
    if journal.finished and out.exists():
        return journal.summary()
    # A pack can go on after an interruption, a folder cannot: the folder comes at the end, all at once.
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
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("mining", total=None)
        summary = run_mining(
            source,
            recipe,
            journal,
            PackWriter(pack, source.classes),
            selection=build(config.selection),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if config.format == "folder":
        write_folder(out, PackDataset(pack, channels=None), source.classes)
        shutil.rmtree(pack)
    return summary


def sources_table(sources: list[SourceReport]) -> Table:
    """Return the report on the sources: how much their masks differ, and how far apart their qualities are."""
    table = Table(
        title="Candidates by source: share of identical masks, mean IoU with each other, IoU with gold",
        caption="means over the images",
    )
    table.add_column("source", no_wrap=True)
    for column in ("images", "masks", "same", "mutual", "worst", "mean", "best", "spread"):
        table.add_column(column, justify="right", no_wrap=True)
    for source in sources:
        quality = source.worst_quality, source.mean_quality, source.best_quality, source.spread
        numbers = [f"{source.identical:.1%}", *map(_number, (source.pairwise_iou, *quality))]
        table.add_row(source.source, str(source.images), str(source.masks), *numbers)
    return table


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


if __name__ == "__main__":
    main()
