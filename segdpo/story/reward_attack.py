"""Over-optimisation of a reward model: masks are pushed up its gradient, to see whether their true quality follows."""

import csv
import io
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from segdpo.data.batch import PairBatch
from segdpo.metrics.overlap import per_image_overlap
from segdpo.metrics.statistics import mean_interval, paired_difference
from segdpo.models.atomic_file import write_atomically
from segdpo.models.reward_inputs import reward_inputs, soft_inputs
from segdpo.regions import IGNORE
from segdpo.reports.attack_curves import draw_attack
from segdpo.story.configs import Plain
from segdpo.story.setting import Setting
from segdpo.training.scoring import PreferenceBatch

log = logging.getLogger(__name__)

# How sure the mask is of its own classes before the first step.
SURE = 0.9


@dataclass(frozen=True, eq=False)
class Climb:
    """What became of some masks, float32 [steps + 1, masks] each, the first row before the first step.

    `reward` and `iou` are those of the mask that the most probable classes give, `soft_reward` that of the
    probabilities that were pushed.
    """

    soft_reward: Tensor
    reward: Tensor
    iou: Tensor


def attack_on_test(setting: Setting, model: nn.Module, batches: Iterable[PreferenceBatch]) -> Plain:
    """Attack on the first test images from the worst mask of each; write attack.csv and attack.png, return the ends."""
    options = setting.config.reward_test.attack
    if not options.images:
        return {}
    climbs: list[Climb] = []
    ids: list[str] = []
    for batch in batches:
        if batch.gold is None or len(ids) >= options.images:
            break
        start, gold = worst_masks(batch), batch.gold.masked_fill(~batch.valid, IGNORE)
        kept = slice(0, options.images - len(ids))
        climbs.append(
            climb(
                model,
                batch.image[kept],
                start[kept],
                gold[kept],
                steps=options.steps,
                step_size=options.step_size,
                background=setting.config.background,
            )
        )
        ids += batch.ids[kept]
    if not climbs:
        log.warning("Expected gold masks of test images to attack the reward model on but there is none; no attack.")
        return {}
    whole = Climb(*(torch.cat([getattr(one, name) for one in climbs], 1) for name in Climb.__dataclass_fields__))
    write_atomically(setting.folder / "attack.csv", as_csv(whole, ids).encode())
    draw_attack(whole.reward.tolist(), whole.iou.tolist(), setting.folder / "attack.png")
    return ends_of(whole)


def climb(
    model: nn.Module,
    image: Tensor,
    masks: Tensor,
    gold: Tensor,
    *,
    steps: int,
    step_size: float,
    background: bool = False,
) -> Climb:
    """Push the soft classes of masks [P, H, W], one an image, up the reward; `step_size`: mean move of a logit a step.

    Pixels that a mask ignores stay ignored. The model needs `of_inputs` and `classes`, as those of this package have.
    """
    asked: Any = model
    classes: int = asked.classes
    given = reward_inputs(image, masks, None, classes)
    own = torch.nn.functional.one_hot(masks.masked_fill(~given.known, 0).long(), classes).movedim(-1, 1)
    logits = torch.where(own.bool(), SURE, (1 - SURE) / (classes - 1)).log()
    rows: list[tuple[Tensor, Tensor, Tensor]] = []
    for step in range(steps + 1):
        logits.requires_grad_(True)
        soft: Tensor = asked.of_inputs(soft_inputs(image, logits.softmax(1), given.known))
        hard = logits.detach().argmax(1).byte().masked_fill(~given.known, IGNORE)
        with torch.no_grad():
            iou = per_image_overlap(hard, gold, classes, background)["iou"]
            rows.append((soft.detach(), model(image, hard), iou))
        if step < steps:
            (gradient,) = torch.autograd.grad(soft.sum(), logits)
            size = gradient.abs().flatten(1).mean(1).clamp(min=torch.finfo(gradient.dtype).tiny)
            logits = logits.detach() + step_size * gradient / size[:, None, None, None]
    return Climb(*(torch.stack(column).float().cpu() for column in zip(*rows, strict=True)))


def worst_masks(batch: PreferenceBatch) -> Tensor:
    """Return the rejected mask of each image's first pair, or the last of its ranking."""
    if not isinstance(batch, PairBatch):
        return batch.ranking[:, -1]
    images = torch.arange(len(batch.image), device=batch.image_index.device)
    return batch.rejected[(batch.image_index == images[:, None]).int().argmax(1)]


def ends_of(whole: Climb) -> dict[str, Any]:
    """Return where the climb began and ended, and at which step the true quality was best."""
    mean = whole.iou.nanmean(1)
    best = int(mean.nan_to_num(-1).argmax())
    return {
        "steps": len(whole.iou) - 1,
        "reward": {"start": asdict(mean_interval(whole.reward[0])), "end": asdict(mean_interval(whole.reward[-1]))},
        "iou": {
            "start": asdict(mean_interval(whole.iou[0])),
            "end": asdict(mean_interval(whole.iou[-1])),
            "difference": asdict(paired_difference(whole.iou[-1], whole.iou[0])),
            "best": float(mean[best]),
            "best_step": best,
        },
    }


def as_csv(whole: Climb, ids: Iterable[str]) -> str:
    """Return a row for each step of each image."""
    names = list(ids)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["step", "image", "soft_reward", "reward", "iou"])
    for step in range(len(whole.iou)):
        for number, name in enumerate(names):
            values = (getattr(whole, column)[step, number].item() for column in ("soft_reward", "reward", "iou"))
            writer.writerow([step, name, *(f"{value:.6g}" for value in values)])
    return file.getvalue()
