"""What every story starts from: the configuration, the data and its splits, the folder of the run."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from segdpo.data.record_source import RecordSource
from segdpo.data.splits import Splits, infos_of
from segdpo.story.configs import build

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Setting:
    """The configuration, the records, how they are split, and where the run writes."""

    config: DictConfig
    source: RecordSource
    splits: Splits
    folder: Path


def open_setting(config: DictConfig) -> Setting:
    """Open the data, split it, and refuse a model of other classes than the data's."""
    source: RecordSource = build(config.data)
    check_class_count(config, "model", source.classes)
    splits: Splits = build(config.datamodule.split)(infos_of(source))
    log.info("%s", splits)
    folder = Path(config.run_folder)
    folder.mkdir(parents=True, exist_ok=True)
    return Setting(config, source, splits, folder)


def check_class_count(config: DictConfig, network: str, classes: Sequence[str]) -> None:
    """Refuse a `network` of the configuration, model or reward_model, of another number of classes than the data's."""
    wanted = config[network].classes
    if wanted is not None and wanted != len(classes):
        raise ValueError(
            f"Expected {network}.classes={len(classes)} for the classes of the data ({', '.join(classes)}) but got "
            f"{wanted}; leave {network}.classes=null, or choose the data that this model is for."
        )
