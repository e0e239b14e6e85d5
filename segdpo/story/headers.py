"""What a file of weights says about itself, so that the network can be built again from the file alone."""

import json
from collections.abc import Sequence

from omegaconf import DictConfig

from segdpo.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from segdpo.story.configs import Plain, plain


def description_of(config: DictConfig, classes: Sequence[str]) -> Plain:
    """Return model, adapter, classes and normalisation as plain values."""
    evaluation = plain(config.transforms).get("eval", {})
    adapter = plain(config.adapter)
    return {
        "model": {**plain(config.model), "classes": len(classes)},
        "adapter": adapter,
        "classes": list(classes),
        "mean": list(evaluation.get("mean", IMAGENET_MEAN)),
        "std": list(evaluation.get("std", IMAGENET_STD)),
    }


def header_for(config: DictConfig, classes: Sequence[str], *, adapter: bool = False) -> dict[str, str]:
    """Return the header of a file of weights; `adapter`: the weights are the network's with its adapter."""
    description = description_of(config, classes)
    if not adapter:
        description["adapter"] = None
    return {"config": json.dumps(description)}
