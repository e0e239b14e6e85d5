"""Mine preferences: candidates × a judge × questions → a data set on disk, and a report on the sources."""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape

from segdpo.checks import check_choice
from segdpo.data import PackDataset, PackWriter, Preparation, RecordSource, check_made_with, write_folder
from segdpo.files import DataError, exists, open_file
from segdpo.inference import open_network
from segdpo.models import POLICY, check_resolvers, load_weights, weights_path
from segdpo.preferences import (
    Journal,
    Miner,
    Mining,
    Network,
    Result,
    Summary,
    asks_network,
    journal_path,
    run_mining,
    with_network,
)
from segdpo.progress import Bars
from segdpo.recipes.config import build, plain
from segdpo.recipes.evaluate import check_classes
from segdpo.reports import sources_table

# What files of weights end in.
WEIGHTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


def run_mine(config: DictConfig) -> None:
    """Mine as conf/mine.yaml says and print the report; exit status 1 when something is wrong with the data.

    Interrupted at any moment and started again with the same settings, it resumes and writes the same bytes.
    """
    console = Console()
    check_choice("format", config.format, ("pack", "folder"))
    summary = mine_to_disk(config, console)
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
    if build(config.questions) is None:
        raise DataError(
            "Expected questions to ask about candidates but got questions=answered, which takes the preferences that "
            "the data came with; choose another, such as questions=best_worst, or train on the data as it is."
        )
    miner = ConfiguredMiner(config, console)
    left_out = ("out", "engine") if miner.asks else ("out", "engine", "model")
    settings = with_contents(_plain(OmegaConf.masked_copy(config, [str(key) for key in config if key not in left_out])))
    journal = Journal(journal_path(out), settings)
    # An interrupted pack can be continued, a folder cannot: the folder is written at the end, all at once.
    pack = out if config.format == "pack" else out.with_name(f"{out.name}.pack")
    if journal.finished and out.exists():
        return counted(journal.summary(), out, settings) if pack == out else journal.summary()
    if pack != out and out.exists():
        raise DataError(
            f"{out}: Expected nothing there but it is there, and no journal of a finished mining ({journal.path}) says "
            "what it was made with; choose another out, or remove it."
        )
    # Opens the network, if one is asked, before anything is written.
    selection = partial(miner.selection, seed=config.seed)
    with Bars(console) as bars:
        summary = run_mining(
            miner.source,
            miner,
            journal,
            PackWriter(pack, miner.source.classes, images="files", made_with=settings),
            selection=selection,
            engine=build(config.engine),
            progress=lambda done, total: bars.update("mining", done, total),
        )
    summary = counted(summary, pack, settings)
    if config.format == "folder":
        write_folder(out, PackDataset(pack, channels=None), miner.source.classes)
        shutil.rmtree(pack)
    return summary


def counted(summary: Summary, path: Path, settings: dict[str, Any]) -> Summary:
    """Return the summary of a journal with the numbers of the pack.

    Raises:
        DataError: the pack was made with other settings, or does not hold what the journal says.
    """
    pack = PackDataset(path, channels=None)
    check_made_with(path, pack.made_with, settings)
    if (len(pack), pack.pairs) != (summary.mined, summary.pairs):
        raise DataError(
            f"{path}: Expected {summary.mined} records with {summary.pairs} pairs, as its journal says, but it has "
            f"{len(pack)} with {pack.pairs}; choose another out, or remove the pack and its journal.",
            "version",
        )
    return replace(summary, mined=len(pack), pairs=pack.pairs)


class ConfiguredMiner:
    """The miner of a configuration.

    What it needs is built when it is first needed. To another process goes the configuration alone, so that each
    process opens the data and loads the network once.
    """

    def __init__(self, config: DictConfig, console: Console | None = None):
        self._config, self._console = config, console or Console(quiet=True)
        self._candidates, self._selection = build(config.candidates), build(config.selection)
        self.asks = asks_network(self._candidates) or asks_network(self._selection)

    def __reduce__(self) -> tuple[Any, ...]:
        # Filled in here: ${oc.env:…} may have another value there.
        return ConfiguredMiner, (OmegaConf.create(plain(self._config)),)

    def __call__(self, number: int) -> Result:
        """Mine a record."""
        return self._mine(number)

    @cached_property
    def source(self) -> RecordSource:
        """The records."""
        found: RecordSource = build(self._config.data)
        return found

    @property
    def selection(self) -> Callable[..., list[int]]:
        """The selection, with the network if it asks one."""
        return with_network(self._selection, self._network)

    @cached_property
    def _network(self) -> Network | None:
        return network_to_ask(self._config, self.source, self._console) if self.asks else None

    @cached_property
    def _mine(self) -> Miner:
        mining = Mining(
            candidates=with_network(self._candidates, self._network),
            judge=build(self._config.judge),
            questions=build(self._config.questions),
            seed=self._config.seed,
            keep_duplicates=self._config.keep_duplicates,
            background=self._config.background,
        )
        return Miner(self.source, mining)


def network_to_ask(config: DictConfig, source: RecordSource, console: Console) -> Network:
    """Return the network of `model.weights`; where only the names of its classes are not the data's, say so.

    Raises:
        ValueError: no weights are named, or their network is for other classes.
    """
    weights, classes = config.model.weights, source.classes
    if weights is None:
        raise ValueError(
            "Expected the weights of the network that candidates or selection ask but model.weights is not set; "
            "set model.weights=outputs/DATE/TIME, the folder of a run of segdpo train, or take candidates that ask no "
            "network, such as candidates=corruptions."
        )
    if config.model.get("network") is None:
        network, description = open_network(weights, device=config.device, trusted=list(config.model.trusted))
        for note in check_classes(weights_path(Path(weights)), description["classes"], classes):
            console.print(f"[yellow]note[/yellow] {escape(note)}")
        check_decoding(description["preparation"], source)
        console.print(description["preparation"].line(), markup=False)
        return network
    segmenter = build(config.model.network, classes=len(classes))
    load_weights(weights, segmenter)
    return Network(segmenter, device=config.device)


def check_decoding(preparation: Preparation, source: RecordSource) -> None:
    """Refuse data whose image files are decoded otherwise than those that the network was trained on."""
    for option in ("channels", "value_range"):
        trained, given = (getattr(one, option, None) for one in (preparation, source))
        trained, given = (list(one) if isinstance(one, Sequence) else one for one in (trained, given))
        if None not in (trained, given) and trained != given:
            raise DataError(
                f"Expected images of {option}={trained}, as the network was trained on, but the data has "
                f"{option}={given}; set data.{option}={trained}, or choose other weights."
            )


def with_contents(settings: Any) -> Any:
    """Return settings in which a hash of their content takes the place of paths of weights.

    So a run is resumed with the same weights alone, wherever they are.
    """
    if isinstance(settings, dict):
        return {key: with_contents(value) for key, value in settings.items()}
    if isinstance(settings, list):
        return [with_contents(value) for value in settings]
    path = _file_of_weights(settings)
    if path is None:
        return settings
    digest = hashlib.sha256()
    with open_file(path) as file:
        while part := file.read(2**20):
            digest.update(part)
    return f"weights of sha256 {digest.hexdigest()[:32]}"


def _file_of_weights(value: Any) -> Path | None:
    """Return the file of weights that a value of the settings is the path of; None for any other value."""
    if not isinstance(value, str) or not value:
        return None
    path = Path(value)
    if path.suffix in WEIGHTS:
        return path if exists(path) else None
    return weights_path(path) if exists(path / POLICY) else None


def _plain(node: DictConfig) -> dict[str, Any]:
    """Return the node as plain dicts and lists, or say which value is missing."""
    found: dict[str, Any] = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    return found
