"""A small trained network on disk, as a run leaves it; shared by the tests of predict and export."""

import json

import torch
from torch import nn

from segdpo.models.segmenter import Segmenter
from segdpo.models.weights import save_weights

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


def two_layers(num_classes, width=4, kernel=3, in_channels=3, weights=None):
    """Look at 5×5 pixels (kernel 3) or at one (kernel 1)."""
    assert weights is None, "a trained network must not fetch weights"
    pad = kernel // 2
    first = nn.Conv2d(in_channels, width, kernel, padding=pad)
    return nn.Sequential(first, nn.ReLU(), nn.Conv2d(width, num_classes, kernel, padding=pad))


def description(names=("background", "cell"), mean=MEAN, std=STD, **options):
    model = {
        "_target_": "segdpo.models.wrap",
        "network_factory": {"_target_": "trained.two_layers", "_partial_": True, "weights": "IMAGENET", **options},
        "classes": len(names),
        "multiple": 4,
    }
    return {"model": model, "adapter": None, "classes": list(names), "mean": mean, "std": std}


def segmenter(names=("background", "cell"), **options):
    channels = 1 if len(names) == 2 else len(names)
    return Segmenter(two_layers(channels, **options), len(names), multiple=4).eval()


def preparation_of(*steps, channels=3, mean=MEAN, std=STD, window=None):
    """Return the preparation as a file holds it; steps: (name in albumentations, options)."""
    views = {"_target_": "segdpo.data.Pipeline", "mean": mean, "std": std}
    views["steps"] = [{"_target_": f"segdpo.data.albumentations.{name}", **options} for name, options in steps]
    return {"views": views, "channels": channels, "value_range": None, "window": window}


def save_run(folder, names=("background", "cell"), mean=MEAN, std=STD, preparation=None, **options):
    """Write folder/policy.safetensors and return the network."""
    torch.manual_seed(7)
    network = segmenter(names, **options)
    config = description(names, mean, std, **options)
    if preparation is not None:
        config["preparation"] = preparation
    save_weights(folder / "policy.safetensors", network, {"config": json.dumps(config)})
    return network
