"""L5: all 28 pairs of eight masks an image: differences to one base mask beside a gather a mask."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import combinations
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.cases import BETA, another_mask, assert_same, back, make_case, make_logits
from bench.rounds import rounds_of
from bench.row import Row, at_least
from bench.scale import Scale
from segdpo import MaskIndex, mask_index, score_masks

MASKS = 8


def rows(scale: Scale, folder: Path) -> Iterator[Row]:
    """Measure dpo over all pairs, forward and backward."""
    for classes in (2, 21):
        images, side = scale.loss_images, scale.loss_side
        masks = eight_masks(images, classes, side, scale.device)
        pairs = pairs_of(images, scale.device)
        mask_image = torch.arange(images, device=scale.device).repeat_interleave(MASKS)
        logits = make_logits(images, classes, side, scale.device)
        wide = masks.long()
        kinds = {
            "ours": partial(ours, logits, masks, pairs, mask_image, mask_index(masks, pairs, mask_image)),
            "found": partial(ours, logits, masks, pairs, mask_image, None),
            "fair baseline": partial(gathers, logits, wide, pairs),
            "naive": partial(cross_entropies, logits, wide, pairs),
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


def ours(logits: Tensor, masks: Tensor, pairs: Tensor, mask_image: Tensor, index: MaskIndex | None) -> Tensor:
    """Compute dpo of every pair through differences to a base mask."""
    return -F.logsigmoid(BETA * score_masks(logits, masks, pairs, mask_image, index=index).margin).mean()


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


def eight_masks(images: int, classes: int, side: int, device: torch.device) -> Tensor:
    """Draw eight masks an image, [images · 8, side, side], each a tenth off the first."""
    generator = torch.Generator().manual_seed(2)
    first = make_case(images, classes, side, torch.device("cpu")).chosen.long()
    others = [another_mask(first, classes, generator) for _ in range(MASKS - 1)]
    return torch.stack([first, *others], 1).flatten(0, 1).to(device, torch.uint8)


def pairs_of(images: int, device: torch.device) -> Tensor:
    """Return all pairs of each image's masks, by their numbers among all masks."""
    of_one = torch.tensor(list(combinations(range(MASKS), 2)), device=device)
    first = MASKS * torch.arange(images, device=device)[:, None, None]
    return (of_one + first).flatten(0, 1)
