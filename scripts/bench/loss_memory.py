"""L4: the most memory inside the loss, forward and backward, as a multiple of the logits."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from segdpo.kernels.fused import fused_scores
from torch import Tensor

from bench.cases import DIFFERENT, Case, back, make_case, make_logits
from bench.loss_speed import sides_of
from bench.memory import peak_bytes
from bench.row import Row, at_most
from bench.scale import Scale
from segdpo import Score
from segdpo.measures import prepare

CLASSES = 21


def rows(scale: Scale, folder: Path) -> Iterator[Row]:
    """Measure the margin alone, with an anchor, and with an anchor whose gradient takes the logits' own place."""
    case = make_case(scale.loss_images, CLASSES, scale.loss_side, scale.device)
    logits = make_logits(scale.loss_images, CLASSES, scale.loss_side, scale.device)
    kinds = sides_of(logits, case)
    peaks = {name: [peak(logits, total) / logits.nbytes] for name, total in kinds.items()}
    where = f"C = {CLASSES}, float32, {scale.loss_size}, {DIFFERENT:.0%} differ"
    for name, fair, limit in (("margin", "fair", 1.1), ("anchored", "fair anchored", 1.2)):
        sides = {"floor": [1.0], "fair baseline": peaks[fair], "naive": peaks["naive"], "ours": peaks[name]}
        what = f"peak inside our {name} loss ÷ logits (floor: their gradient); {where}"
        yield Row("L4", what, "×", sides, ("ours",), at_most(limit))
    inside = in_place_peak(logits, case) / logits.nbytes
    what = f"peak inside our anchored loss, in place ÷ logits; {where}"
    yield Row("L4", what, "×", {"floor": [0.0], "ours": [inside]}, ("ours",), at_most(0.15))


def peak(logits: Tensor, total: Callable[[], Tensor]) -> int:
    """Return the bytes that forward and backward of the loss add at most, the gradient among them."""
    back(logits, total)
    return peak_bytes(partial(back, logits, total), logits.device)


def in_place_peak(logits: Tensor, case: Case) -> int:
    """Return the peak of the fused scores whose backward writes the gradient over the logits.

    A copy of the logits is what a network's last layer would have returned: not a leaf, and nobody else's.
    """
    flat = (case.chosen.flatten(1), case.rejected.flatten(1))
    score = Score()
    _, measure = prepare(
        logits, {"chosen": case.chosen, "rejected": case.rejected}, valid=None, image_index=None,
        quantity=score.quantity, region=score.region, reduction=score.reduction,
    )  # fmt: skip
    given = logits.detach().flatten(2).clone().requires_grad_()
    output = given * 1.0
    index = case.index

    def work() -> None:
        margins, chosen = fused_scores(output, *flat, [measure], [True], index=index, in_place=True)
        assert chosen[0] is not None
        (margins[0] - chosen[0]).mean().backward(inputs=[output])

    return peak_bytes(work, logits.device)
