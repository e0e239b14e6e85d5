"""What every story starts from: the configuration, the data and its splits, the folder of the run."""

import logging
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
    wanted = config.model.classes
    if wanted is not None and wanted != len(source.classes):
        raise ValueError(
            f"Expected model.classes={len(source.classes)} for the classes of the data ({', '.join(source.classes)}) "
            f"but got {wanted}; leave model.classes=null, or choose the data that this model is for."
        )
    splits: Splits = build(config.datamodule.split)(infos_of(source))
    log.info("%s", splits)
    folder = Path(config.run_folder)
    folder.mkdir(parents=True, exist_ok=True)
    return Setting(config, source, splits, folder)
