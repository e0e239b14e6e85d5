"""A network as a judge: a reward model, or anything that is called like one."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segdpo.pairs.judges import Scores
from segdpo.pairs.overlap import CannotJudge
from segdpo.pairs.prediction import MEAN, STD, to_model_input
from segdpo.pairs.record import Masks, Record
from segdpo.regions import IGNORE


def by_network(
    record: Record,
    masks: Masks,
    rng: np.random.Generator,
    *,
    model: nn.Module,
    device: str = "cpu",
    views: Callable[..., Any] | None = None,
) -> Scores:
    """Return the network's reward of each mask; needs no gold.

    Args:
        record: whose image is looked at.
        masks: what is judged, uint8 [K, H, W].
        rng: not asked; every judge is given one.
        model: called as (image [1, C, H, W], masks [K, H, W], image_index [K]), returns [K].
        device: where it runs.
        views: what image and masks go through, `(image, masks, rng) -> View`, as they did when it was trained; left
            out: nothing but normalisation by the model's own `mean` and `std`.
    """
    empty = np.flatnonzero((masks == IGNORE).all((1, 2)))
    if len(empty):
        raise CannotJudge(f"Record {record.id!r}: mask {empty[0]} ignores every pixel.")
    image, seen = _look(record, masks, model, views)
    model.to(device).eval()
    try:
        with torch.inference_mode():
            index = torch.zeros(len(seen), dtype=torch.int64, device=device)
            rewards: Tensor = model(image[None].to(device), torch.from_numpy(seen).to(device), index)
    except ValueError as error:
        raise ValueError(f"Record {record.id!r}: {error}") from error
    scores = rewards.double().cpu().numpy()
    if scores.shape != (len(masks),) or not np.isfinite(scores).all():
        raise ValueError(
            f"Expected {len(masks)} finite rewards for record {record.id!r} but got {scores.tolist()}; train the "
            "reward model again, or take another."
        )
    return np.asarray(scores)


def _look(record: Record, masks: Masks, model: nn.Module, views: Callable[..., Any] | None) -> tuple[Tensor, Masks]:
    if views is None:
        mean, std = getattr(model, "mean", MEAN), getattr(model, "std", STD)
        return to_model_input(record.image, mean, std), masks
    # A generator of its own: views of evaluation draw nothing, and the judge's draws are not theirs.
    view = views(record.image, masks, np.random.default_rng(0))
    return torch.from_numpy(view.image), view.masks
