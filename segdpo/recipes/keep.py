"""The safety rule: whether a run leaves its policy or its reference, by what the held-out judgements show."""

import logging
import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from segdpo.checks import check_choice
from segdpo.data import DataModule, info_of
from segdpo.metrics import ClusteredInterval, Doubles, clustered_interval, win_rate
from segdpo.models import has_adapter, save_adapter, save_weights
from segdpo.recipes.fitting import header_for
from segdpo.recipes.measure import in_weight_type
from segdpo.recipes.run import Run, Summary
from segdpo.training import HeldOutGains, weight_of

log = logging.getLogger(__name__)

RULES = ("safe", "always")
# Fewer images (or groups of images) with judgements show nothing.
FEWEST = 5


@dataclass(frozen=True, eq=False)
class HeldOut:
    """The policy's IoU margin of each held-out judgement minus the reference's.

    Attributes:
        margins: IoU(prediction, chosen) − IoU(prediction, rejected) of the policy, minus that of the reference.
        weights: of the judgements.
        ids: the image of each.
        groups: the group of each image, or its id.
    """

    margins: Doubles
    weights: Doubles
    ids: list[str]
    groups: list[str]

    @property
    def interval(self) -> ClusteredInterval:
        """The mean margin with its interval over groups of images."""
        return clustered_interval(self.margins, self.groups, self.weights, fewest=FEWEST)

    def summary(self) -> Summary:
        """Return the part of summary.json."""
        names, group = np.unique(self.groups, return_inverse=True)
        means = np.bincount(group, self.weights * self.margins) if len(names) else self.margins
        return {
            "judgements": len(self.margins),
            "images": len(set(self.ids)),
            "iou_margin": asdict(self.interval),
            "win_rate": asdict(win_rate(means, np.zeros(len(means)))),
        }


def check_rule(rule: str, data: DataModule) -> None:
    """Before training, refuse an unknown rule, and warn if there are too few held-out judgements to show anything."""
    check_choice("keep", rule, RULES)
    infos = [info_of(data.source, int(number), preferences=True) for number in data.splits.val]
    groups = {info.group or info.id for info in infos if info.pairs or (info.ranking or 0) > 1}
    if rule == "safe" and len(groups) < FEWEST:
        log.warning(
            "Judgements of %d validation images (or groups of images) cannot show that a policy is better: it takes %d. "
            "The reference will be kept as policy.safetensors. Raise datamodule.split.val, or set keep=always.",
            len(groups),
            FEWEST,
        )


@torch.no_grad()
def measure_held_out(run: Run, policy: nn.Module, reference: nn.Module, data: DataModule) -> HeldOut:
    """Measure both networks on the judgements of the validation images, in evaluation mode and full precision."""
    numbers = data.splits.val
    if not len(numbers):
        return HeldOut(np.empty(0), np.empty(0), [], [])
    items = data.eval_data(numbers)
    margins_of = HeldOutGains(reference, run.config.background)
    device = next(policy.parameters()).device
    policy.eval()
    margins, weights, ids = [], [], []
    for batch in DataLoader(items, data.batch_size, collate_fn=items.collate):
        moved = batch.to(device)
        margins.append(margins_of(policy(in_weight_type(policy, moved.image, device)).float(), moved)["iou_margin"].cpu())
        weights.append(weight_of(moved).cpu())
        index = batch.image_index.tolist() if hasattr(batch, "image_index") else range(len(batch.ids))
        ids += [batch.ids[number] for number in index]
    infos = (info_of(data.source, int(number)) for number in numbers)
    groups = {info.id: info.group or info.id for info in infos}
    joined = (torch.cat(parts).double().numpy() for parts in (margins, weights))
    return HeldOut(*joined, ids, [groups[name] for name in ids])


def decide(rule: str, held_out: HeldOut) -> str:
    """Return which network is kept, "policy" or "reference".

    `safe`: the policy only if the lower end of the one-sided 95 % interval of the mean margin is above 0.
    """
    bound = held_out.interval.bound
    return "policy" if rule == "always" or (not math.isnan(bound) and bound > 0) else "reference"


def save_kept(run: Run, kept: str, policy: nn.Module, reference: nn.Module) -> None:
    """Write reference.safetensors, and as policy.safetensors the network that is kept.

    Where that is the reference, the trained policy is trained_policy.safetensors.
    """
    folder, config, classes = run.folder, run.config, run.classes
    own, plain = header_for(config, classes, adapter=True), header_for(config, classes)
    trained = folder / "trained_policy.safetensors"
    _remove(trained, folder / "adapter")  # of the same run before it was resumed
    save_weights(folder / "reference.safetensors", reference, plain)
    if kept == "reference":
        save_weights(trained, policy, own)
        save_weights(folder / "policy.safetensors", reference, plain)
        return
    if has_adapter(policy):
        save_adapter(folder / "adapter", policy)
    save_weights(folder / "policy.safetensors", policy, own)


def _remove(file: Path, folder: Path) -> None:
    file.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
