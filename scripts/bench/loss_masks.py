"""L5: all 28 pairs of eight masks an image: differences to one base mask beside a gather a mask."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.cases import BETA, assert_same, back, make_logits
from bench.many_masks import MASKS, ManyMasks, make_many
from bench.rounds import rounds_of
from bench.row import Row, at_least
from bench.scale import Scale
from segdpo import score_masks


def rows(scale: Scale, folder: Path) -> Iterator[Row]:
    """Measure dpo over all pairs, forward and backward."""
    for classes in (2, 21):
        many = make_many(scale.loss_images, classes, scale.loss_side, scale.device)
        logits = make_logits(scale.loss_images, classes, scale.loss_side, scale.device)
        wide = many.masks.long()
        kinds = {
            "ours": partial(ours, logits, many),
            "found": partial(found_on_the_spot, logits, many),
            "fair baseline": partial(gathers, logits, wide, many.pairs),
            "naive": partial(cross_entropies, logits, wide, many.pairs),
        }
        for name in ("ours", "found"):
            assert_same(logits, kinds[name], kinds["fair baseline"])
        work: dict[str, Callable[[], object]] = {name: partial(back, logits, total) for name, total in kinds.items()}
        work["floor"] = partial(torch.zeros_like, logits)
        found = rounds_of(work, scale, f"28 pairs, {classes} classes")
        where = f"C = {classes}, float32, {scale.loss_size}, masks a tenth off the first"
        what = f"one log-softmax and 8 gathers ÷ ours, 28 pairs, index given; {where}"
        spot = found.pop("found")
        over = ("fair baseline", "ours")
        yield Row("L5", what, "ms", found, over, at_least(4))
        yield Row("L5", f"the same, index found on the spot; {where}", "ms", {**found, "ours": spot}, over, at_least(4))


def ours(logits: Tensor, many: ManyMasks) -> Tensor:
    """Compute dpo of every pair through differences to a base mask."""
    return -F.logsigmoid(BETA * many.score(logits).margin).mean()


def found_on_the_spot(logits: Tensor, many: ManyMasks) -> Tensor:
    """Compute the same without an index from the collate."""
    return -F.logsigmoid(BETA * score_masks(logits, many.masks, many.pairs, many.mask_image).margin).mean()


def gathers(logits: Tensor, masks: Tensor, pairs: Tensor) -> Tensor:
    """Compute the same from one log-softmax, a gather a mask."""
    log_probs = logits.log_softmax(1)
    of_image = masks.unflatten(0, (len(logits), MASKS))
    scores = torch.stack(
        [log_probs.gather(1, of_image[:, k, None])[:, 0].mean((1, 2)) for k in range(MASKS)], 1
    ).flatten()
    return -F.logsigmoid(BETA * (scores[pairs[:, 0]] - scores[pairs[:, 1]])).mean()


def cross_entropies(logits: Tensor, masks: Tensor, pairs: Tensor) -> Tensor:
    """Compute the same with a cross-entropy a mask."""
    of_image = masks.unflatten(0, (len(logits), MASKS))
    losses = [F.cross_entropy(logits, of_image[:, k], reduction="none").mean((1, 2)) for k in range(MASKS)]
    scores = -torch.stack(losses, 1).flatten()
    return -F.logsigmoid(BETA * (scores[pairs[:, 0]] - scores[pairs[:, 1]])).mean()
