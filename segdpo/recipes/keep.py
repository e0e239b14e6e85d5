"""The safety rule: whether a run leaves its policy or its reference, by what the held-out judgements show."""

import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from segdpo.checks import check_choice
from segdpo.data import SHOWING, DataModule, Numbers, info_of
from segdpo.metrics import ClusteredInterval, Doubles, clustered_interval, win_rate
from segdpo.models import has_adapter, save_adapter, save_weights
from segdpo.preferences import whole_or_in_windows
from segdpo.recipes.fitting import header_for
from segdpo.recipes.run import Figures, Run
from segdpo.training import GAINS, HeldOutGains, images_of, weight_of

log = logging.getLogger(__name__)

TRAINED = "trained_policy.safetensors"  # where the rule keeps the reference
RULES = ("safe", "always")
# IoU with the chosen masks that a policy may lose: a reference is near all candidates of its own, and a better policy
# further from them.
LOST = 0.05


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What the policy gains over the reference in each held-out judgement.

    Attributes:
        gains: `chosen_iou` and `iou_margin` of HeldOutGains, [judgements] each.
        weights: of the judgements.
        ids: the image of each.
        groups: the group of each image, or its id.
    """

    gains: Mapping[str, Doubles]
    weights: Doubles
    ids: Sequence[str]
    groups: Sequence[str]

    @property
    def intervals(self) -> dict[str, ClusteredInterval]:
        """The mean of each gain with its interval over groups of images."""
        return {
            name: clustered_interval(values, self.groups, self.weights, fewest=SHOWING)
            for name, values in self.gains.items()
        }

    @property
    def shows_a_gain(self) -> bool:
        """Whether the policy is more like the chosen than the rejected masks, and has not lost the chosen ones.

        The lower ends of the one-sided 95 % intervals are above 0 for `iou_margin`, which no judge that answers at
        random raises, and above −LOST for `chosen_iou`, which falls where a policy collapses.
        """
        found = self.intervals
        return found["iou_margin"].bound > 0 and found["chosen_iou"].bound > -LOST  # False for NaN

    def summary(self) -> Figures:
        """Return the part of summary.json: both intervals, the smaller gain, and the share of groups with a gain."""
        intervals = self.intervals
        names, group = np.unique(np.asarray(self.groups, np.str_), return_inverse=True)
        smaller = np.min([np.bincount(group, self.weights * gain) for gain in self.gains.values()], axis=0)
        wins = win_rate(smaller, np.zeros(len(names)))
        return {
            "judgements": len(self.weights),
            "images": len(set(self.ids)),
            "groups": len(names),
            **{name: asdict(interval) for name, interval in intervals.items()},
            "iou_gain": min((interval.mean for interval in intervals.values()), default=math.nan),
            "win_rate": asdict(wins),
        }


def check_rule(rule: str, data: DataModule) -> None:
    """Before training, refuse an unknown rule, and warn if there are too few held-out judgements to show anything."""
    check_choice("keep", rule, RULES)
    groups = set(_groups(data, _judged(data)).values())
    if rule == "safe" and len(groups) < SHOWING:
        log.warning(
            "Judgements of %d validation images (or groups of them) cannot show that a policy is better: it takes %d. "
            "The reference will be kept as policy.safetensors. Raise datamodule.split.val, or set keep=always.",
            len(groups),
            SHOWING,
        )


@torch.no_grad()
def measure_held_out(run: Run, policy: nn.Module, reference: nn.Module, data: DataModule) -> HeldOut:
    """Measure both networks on the judgements of the validation images, in evaluation mode and full precision."""
    gains: dict[str, list[Tensor]] = {name: [torch.empty(0)] for name in GAINS}
    weights, ids, judged = [torch.empty(0)], list[str](), _judged(data)
    window = run.preparation.window
    gains_of = HeldOutGains(reference, run.config.background, window)
    weight = next(policy.parameters())
    policy.eval()
    items = data.eval_data(judged)
    loader = DataLoader(items, data.eval_batch_size(items), collate_fn=items.collate) if len(judged) else ()
    for batch in loader:
        moved = batch.to(weight.device)
        logits = whole_or_in_windows(policy, moved.image.to(weight.dtype), window).float()
        for name, values in gains_of(logits, moved).items():
            gains[name].append(values.cpu())
        weights.append(weight_of(batch))
        ids += [batch.ids[int(number)] for number in images_of(batch)]
    groups = _groups(data, judged)
    joined = {name: torch.cat(values).double().numpy() for name, values in gains.items()}
    return HeldOut(joined, torch.cat(weights).double().numpy(), ids, [groups[name] for name in ids])


def _judged(data: DataModule) -> Numbers:
    """Return the validation images with preferences that evaluation can use."""
    items, numbers = data.eval_data(data.splits.val[:0]), data.splits.val
    return np.array([number for number in numbers if items.usable(int(number))], np.uint32)


def _groups(data: DataModule, images: Numbers) -> dict[str, str]:
    """Return the group of each image, or its own id, by its id."""
    infos = (info_of(data.source, int(number)) for number in images)
    return {info.id: info.group or info.id for info in infos}


def save_kept(run: Run, kept: str, policy: nn.Module, reference: nn.Module) -> None:
    """Write reference.safetensors, and as policy.safetensors the network that is kept.

    Where that is the reference, the trained policy is the file `TRAINED`.
    """
    folder, own, plain = run.folder, header_for(run, adapter=True), header_for(run)
    trained = folder / TRAINED
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
