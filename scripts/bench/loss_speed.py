"""L1–L3: the loss alone, forward and backward, beside one shared log-softmax with cached reference scores."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.cases import Case, assert_same, back, dpo_of, make_case, make_logits, margin_loss
from bench.rounds import rounds_of
from bench.row import Row, Target, at_least, at_most
from bench.scale import Scale
from segdpo import Anchor, PreferenceLoss, anchors

# classes: target of L1 and of L3
TARGETS = {2: (at_least(2), at_least(1.8)), 21: (at_least(4), at_least(2.2))}
BF16_TARGETS = {19: (at_least(8), at_least(2.2))}


def rows(scale: Scale, folder: Path) -> Iterator[Row]:
    """Measure each number of classes; on a GPU bf16 too."""
    for classes, targets in TARGETS.items():
        yield from rows_of(scale, classes, torch.float32, targets)
    if scale.device.type == "cuda":
        for classes, targets in BF16_TARGETS.items():
            yield from rows_of(scale, classes, torch.bfloat16, targets)


def rows_of(scale: Scale, classes: int, dtype: torch.dtype, targets: tuple[Target, Target]) -> Iterator[Row]:
    """Measure all sides in the same rounds and on the same tensors."""
    case = make_case(scale.loss_images, classes, scale.loss_side, scale.device)
    logits = make_logits(scale.loss_images, classes, scale.loss_side, scale.device, dtype)
    kinds = sides_of(logits, case)
    for ours, theirs in (("margin", "fair"), ("found", "fair"), ("fair", "naive"), ("anchored", "fair anchored")):
        assert_same(logits, kinds[ours], kinds[theirs])
    work: dict[str, Callable[[], object]] = {name: partial(back, logits, total) for name, total in kinds.items()}
    work["zeros"] = partial(torch.zeros_like, logits)
    found = rounds_of(work, scale, f"loss, {classes} classes")
    where = f"C = {classes}, {str(dtype).removeprefix('torch.')}, {scale.loss_size}, a tenth differs"
    sides = {"floor": found["zeros"], "fair baseline": found["fair"], "naive": found["naive"]}
    over = ("fair baseline", "ours")
    yield Row(
        "L1",
        f"fair ÷ our margin loss, index given; {where}",
        "ms",
        {**sides, "ours": found["margin"]},
        over,
        targets[0],
    )
    what = f"the same, index found on the spot; {where}"
    yield Row("L1", what, "ms", {**sides, "ours": found["found"]}, over, targets[0])
    what = f"our margin loss, index given ÷ zeros_like(logits); {where}"
    limit = at_most(2.0 if scale.device.type == "cuda" else 1.3)
    yield Row("L2", what, "ms", {**sides, "ours": found["margin"]}, ("ours", "floor"), limit)
    anchored = {"fair baseline": found["fair anchored"], "ours": found["anchored"]}
    yield Row("L3", f"fair ÷ our anchored loss; {where}", "ms", anchored, over, targets[1])


def sides_of(logits: Tensor, case: Case) -> dict[str, Callable[[], Tensor]]:
    """Return what gives the loss, on every side."""
    margin, anchored = margin_loss(), anchored_loss()
    pairs = (case.chosen, case.rejected)
    return {
        "margin": lambda: margin.on_logits(logits, case.cached, *pairs, index=case.index).total,
        "found": lambda: margin.on_logits(logits, case.cached, *pairs).total,
        "anchored": lambda: anchored.on_logits(logits, case.cached, *pairs, index=case.index).total,
        "fair": lambda: fair(logits, case),
        "fair anchored": lambda: fair(logits, case, anchor=1.0),
        "naive": lambda: naive(logits, case),
    }


def anchored_loss() -> PreferenceLoss:
    """Return dpo and the likelihood of the chosen mask, whose score it therefore needs."""
    margin = margin_loss()
    return PreferenceLoss(margin.objective, {"nll": Anchor(1.0, anchors.nll)}, margin.score)


def fair(logits: Tensor, case: Case, anchor: float = 0.0) -> Tensor:
    """Compute dpo, and the anchor, the way a good script does: one log-softmax for both masks, cached reference."""
    return fair_of(logits, *case.wide, case.reference, anchor)


def fair_of(logits: Tensor, chosen: Tensor, rejected: Tensor, reference: Tensor, anchor: float) -> Tensor:
    """Compute the same from tensors alone, so that it can be compiled; one channel is a binary cross-entropy a mask."""
    z = logits.float()
    if logits.shape[1] == 1:
        found = [-F.binary_cross_entropy_with_logits(z[:, 0], m.float(), reduction="none") for m in (chosen, rejected)]
    else:
        log_probs = z.log_softmax(1)
        found = [log_probs.gather(1, mask[:, None])[:, 0] for mask in (chosen, rejected)]
    plus, minus = (one.flatten(1).mean(1) for one in found)
    total = dpo_of(plus - minus, reference)
    return total - anchor * plus.mean() if anchor else total


def naive(logits: Tensor, case: Case) -> Tensor:
    """Compute dpo with a cross-entropy for each mask."""
    plus, minus = (-F.cross_entropy(logits.float(), mask, reduction="none").mean((1, 2)) for mask in case.wide)
    return dpo_of(plus - minus, case.reference)
