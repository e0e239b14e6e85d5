"""What a run is monitored by: IoU where validation has gold, else what the held-out judgements say."""

import logging

from omegaconf import DictConfig

log = logging.getLogger(__name__)

AUTO = "auto"
WITH_GOLD = "val/iou"
# The IoU of fewer images says less than the judgements of all.
FEWEST = 5


def with_monitor(config: DictConfig, images: int, gold: int) -> DictConfig:
    """Return the configuration with `optimise` decided; best checkpoints, early stopping and searches follow it.

    Args:
        config: the whole configuration.
        images: how many validation images there are.
        gold: how many of them have gold.

    Raises:
        ValueError: validation has no gold and the task has no other metric.
    """
    if config.optimise != AUTO:
        return config
    found = WITH_GOLD if gold >= min(images, FEWEST) else config.without_gold
    if found is None:
        raise ValueError(
            f"Expected gold of validation images for this task but {gold} of {images} have any; set "
            "datamodule.split.val=0 callbacks.best=null to train without validation, or choose task=preference."
        )
    if images:
        log.info(
            "Monitored by %s: %d of %d validation images have gold (optimise=… sets another).", found, gold, images
        )
    own = config.copy()
    own.optimise = found
    return own
