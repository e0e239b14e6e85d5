"""L4: the most memory inside the loss, forward and backward, as a multiple of the logits."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from torch import Tensor

from bench.cases import DIFFERENT, back, make_case, make_logits
from bench.loss_speed import sides_of
from bench.memory import peak_bytes
from bench.row import Row, at_most
from bench.scale import Scale

CLASSES = 21


def rows(scale: Scale, folder: Path) -> Iterator[Row]:
    """Measure the margin alone, and with an anchor."""
    case = make_case(scale.loss_images, CLASSES, scale.loss_side, scale.device)
    logits = make_logits(scale.loss_images, CLASSES, scale.loss_side, scale.device)
    kinds = sides_of(logits, case)
    peaks = {name: [peak(logits, total) / logits.nbytes] for name, total in kinds.items()}
    where = f"C = {CLASSES}, float32, {scale.loss_size}, {DIFFERENT:.0%} differ"
    for name, fair, limit in (("margin", "fair", 1.1), ("anchored", "fair anchored", 1.2)):
        sides = {"floor": [1.0], "fair baseline": peaks[fair], "naive": peaks["naive"], "ours": peaks[name]}
        what = f"peak inside our {name} loss ÷ logits (floor: their gradient); {where}"
        yield Row("L4", what, "×", sides, ("ours",), at_most(limit))


def peak(logits: Tensor, total: Callable[[], Tensor]) -> int:
    """Return the bytes that forward and backward of the loss add at most, the gradient among them."""
    back(logits, total)
    return peak_bytes(partial(back, logits, total), logits.device)
