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
    """
    if config.optimise != AUTO:
        return config
    found = WITH_GOLD if gold >= min(images, FEWEST) else config.without_gold
    if found is None:
        log.warning("None of %d validation images has gold, so that nothing picks checkpoints or stops early.", images)
    elif images:
        log.info("Monitored by %s, since %d of %d validation images have gold.", found, gold, images)
    own = config.copy()
    own.optimise = found or WITH_GOLD
    return own
