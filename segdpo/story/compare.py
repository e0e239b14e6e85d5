"""The last stage: policy and reference on images that neither has seen, judged by gold."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import nn

from segdpo.data.batch import SupervisedBatch
from segdpo.data.sampling import EpochLoader, EpochSampler
from segdpo.data.splits import Numbers
from segdpo.data.supervised_dataset import SupervisedDataset
from segdpo.metrics.overlap import per_image_overlap
from segdpo.metrics.statistics import mean_interval, paired_difference, win_rate
from segdpo.story.configs import Plain, build
from segdpo.story.setting import Setting
from segdpo.training.task import predicted_classes

Values = dict[str, np.ndarray[Any, np.dtype[np.float64]]]


@dataclass(frozen=True, eq=False)
class Measured:
    """IoU and Dice of one network, one value an image, and the masks that it predicted."""

    ids: list[str]
    values: Values


def measure_on_test(setting: Setting, network: nn.Module, device: torch.device, say: str) -> Measured | None:
    """Measure a network on the gold of the test images; None if there are none."""
    return measure(setting, network, setting.splits.test, device, f"{say} on test")


@torch.no_grad()
def measure(setting: Setting, network: nn.Module, images: Numbers, device: torch.device, say: str) -> Measured | None:
    """Measure a network on the gold of some images; None if there are none."""
    config = setting.config
    if not len(images):
        return None
    pipeline = build(config.transforms)["eval"]
    data = SupervisedDataset(setting.source, pipeline, images, target="gold", views=1, seed=config.seed)
    network.to(device).eval()
    ids: list[str] = []
    found: dict[str, list[torch.Tensor]] = {"iou": [], "dice": []}
    sampler = EpochSampler(len(data), shuffle=False)
    loader = EpochLoader(data, batch_size=config.datamodule.batch_size, sampler=sampler, collate_fn=data.collate)
    batch: SupervisedBatch
    for batch in track(loader, say, transient=True):
        predicted = predicted_classes(network(as_taken(network, batch.image, device))).cpu()
        gold = batch.target.masked_fill(~batch.valid, 255)
        overlap = per_image_overlap(predicted, gold, len(data.source.classes), background=config.background)
        for name, values in found.items():
            values.append(overlap[name])
        ids += batch.ids
    return Measured(ids, {name: torch.cat(values).double().numpy() for name, values in found.items()})


def as_taken(network: nn.Module, image: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return images on the device in the type of the network's weights, which bf16-true has changed."""
    return image.to(device, next(network.parameters()).dtype)


def compare(policy: Measured | None, reference: Measured | None) -> Plain:
    """Return what summary.json says of both, and of the difference image by image."""
    if policy is None:
        return {}
    summary: dict[str, Any] = {"policy": means_of(policy.values)}
    if reference is None:
        return summary
    summary["reference"] = means_of(reference.values)
    summary["difference"] = {
        name: asdict(paired_difference(policy.values[name], reference.values[name])) for name in ("iou", "dice")
    }
    summary["difference"]["win_rate"] = asdict(win_rate(policy.values["iou"], reference.values["iou"]))
    return summary


def means_of(values: Values) -> dict[str, Any]:
    """Return the mean of each metric with its interval."""
    return {name: asdict(mean_interval(value)) for name, value in values.items()}
