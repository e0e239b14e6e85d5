"""H1–H3: the losses against the memory's bandwidth and against plain PyTorch, in bfloat16, forward and backward.

H1 compares with a copy that moves as many bytes as the loss has to at least, in the same rounds: the share of the
bandwidth that a copy reaches. H2 compares with what a good user writes in PyTorch, H3 with the same under
torch.compile.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from bench.cases import DIFFERENT, Case, assert_same, back, make_case, make_logits, margin_loss
from bench.gpu.clock import in_turns, launch_milliseconds
from bench.loss_speed import anchored_loss, fair, fair_of
from bench.row import Row, Target, at_least, number
from bench.scale import Scale

DTYPE = torch.bfloat16
# Larger copies are as fast, and would need memory.
MOST_COPIED = 2**30


@dataclass(frozen=True)
class Size:
    """Logits [images, channels, *space], and the margin loss's targets: share of the bandwidth, fair ÷ ours."""

    images: int
    channels: int
    space: tuple[int, ...]
    share: Target | None = None
    ratio: Target | None = None

    @property
    def pixels(self) -> int:
        """The number of pixels of all images."""
        return self.images * prod(self.space)

    def __str__(self) -> str:
        side = f"{self.space[0]}{'²' if len(self.space) == 2 else '³'}"
        return f"C = {self.channels}, bfloat16, {self.images} × {side}"


SIZES = (
    Size(16, 19, (1024, 1024), share=at_least(0.8), ratio=at_least(8)),
    Size(16, 1, (1024, 1024), share=at_least(0.8)),
    Size(2, 4, (128, 128, 128), share=at_least(0.8)),
    Size(16, 150, (1024, 1024), share=at_least(0.8)),
)
SMALL = (Size(2, 19, (16, 16), share=at_least(0.8), ratio=at_least(8)), Size(2, 1, (16, 16)), Size(2, 4, (8, 8, 8)))


@dataclass(frozen=True)
class Form:
    """A way to call a loss: with whole masks alone, with an index, or as the trainer does, which gives both indices."""

    name: str
    anchored: bool
    index: bool = False
    image_index: bool = False

    @property
    def loss(self) -> str:
        """What the form computes, for the table."""
        return f"{'anchored' if self.anchored else 'margin'} loss, {self.name}"


# The trainer's is the one that counts.
FORMS = (
    Form("as the trainer calls it", anchored=False, index=True, image_index=True),
    Form("index given", anchored=False, index=True),
    Form("masks alone", anchored=False),
    Form("as the trainer calls it", anchored=True, index=True, image_index=True),
)


def least_bytes(size: Size, form: Form, differing: float = DIFFERENT, element: int = 2) -> int:
    """Return how many bytes forward and backward have to read and write at least, each tensor once in each of them.

    A margin reads, at each pixel where the masks differ, the logits of two classes (of one channel: its one logit); an
    anchored loss reads all logits, twice. Both write the gradient of all logits, and read in both directions two masks
    of one byte a pixel, or of an index ten bytes an entry: its position (8) and two classes.
    """
    few = form.index and not form.image_index and not form.anchored
    masks = 2 * 10 * differing if few else 2 * 2.0
    gradient = size.channels * element
    reads = 2 * gradient if form.anchored else differing * element * min(size.channels, 2)
    return round(size.pixels * (masks + reads + gradient))


def rows(scale: Scale, folder: Path) -> Iterator[Row]:
    """Measure every size; on a CPU small ones, which only show that everything runs."""
    for size in SIZES if scale.device.type == "cuda" else SMALL:
        yield from rows_of(size, scale)
        torch._dynamo.reset()
        if scale.device.type == "cuda":
            torch.cuda.empty_cache()


def rows_of(size: Size, scale: Scale) -> Iterator[Row]:
    """Measure the losses of one size in the same rounds and on the same tensors."""
    classes = max(2, size.channels)
    case = make_case(size.images, classes, size.space, scale.device)
    logits = make_logits(size.images, size.channels, size.space, scale.device, DTYPE)
    differing = float((case.chosen != case.rejected).float().mean())
    for anchored in (False, True):
        forms = [form for form in FORMS if form.anchored == anchored]
        check(logits, case, forms)
        sides: dict[str, Callable[[], object]] = {
            form.name: partial(back, logits, ours(logits, case, form)) for form in forms
        }
        weight = float(anchored)
        sides["fair"] = partial(back, logits, partial(fair, logits, case, weight))
        compiled = compiled_fair(logits, case, weight)
        sides["compiled"] = partial(back, logits, compiled)
        sides, missing = those_that_fit(sides)
        if "compiled" in sides:
            values = (back(logits, ours(logits, case, forms[0]))[0], back(logits, compiled)[0])
            torch.testing.assert_close(*values, rtol=1e-2, atol=1e-3)
        moved = {form.name: least_bytes(size, form, differing) for form in forms}
        copies = {f"copy {name}": partial(copy, half) for name, half in halves(moved, scale.device).items()}
        found = in_turns({**sides, **copies}, scale.rounds, scale.device)
        for form in forms:
            factor = max(1.0, moved[form.name] / 2 / MOST_COPIED)
            copied = [sample * factor for sample in found[f"copy {form.name}"]]
            launch = launch_milliseconds(sides[form.name], scale.device)
            yield from rows_of_form(size, form, {**found, "floor": copied}, missing, launch)


def rows_of_form(
    size: Size, form: Form, found: Mapping[str, list[float]], missing: Mapping[str, str], launch: float
) -> Iterator[Row]:
    """Yield the rows of a form from its samples, those of the copy ("floor"), of "fair" and of "compiled"."""
    what, ours = f"{form.loss}; {size}", found[form.name]
    sides = {"floor": found["floor"], "ours": ours}
    if "fair" in found:
        sides["fair baseline"] = found["fair"]
    share = None if form.anchored else size.share
    speed = least_bytes(size, form) / median(found["floor"]) / 1e6
    note = f"{what}: the copy moves {number(speed)} GB/s; Python takes {number(launch)} ms to launch the loss."
    yield Row("H1", f"copy of as many bytes ÷ our {what}", "ms", sides, ("floor", "ours"), share, note)
    for name, side, title in (("H2", "fair", "fair ÷"), ("H3", "compiled", "fair under torch.compile ÷")):
        target = size.ratio if name == "H2" and not form.anchored else None
        if side in missing:
            yield Row(name, f"{title} our {what}", over=(), note=f"{title} our {what}: {missing[side]}.")
        else:
            both = {"fair baseline": found[side], "ours": ours}
            yield Row(name, f"{title} our {what}", "ms", both, ("fair baseline", "ours"), target)


def ours(logits: Tensor, case: Case, form: Form) -> Callable[[], Tensor]:
    """Return what computes our loss in a form."""
    loss = anchored_loss() if form.anchored else margin_loss()
    given: dict[str, Any] = {"index": case.index} if form.index else {}
    if form.image_index:
        given["image_index"] = torch.arange(len(logits), device=logits.device)
    return lambda: loss.on_logits(logits, case.cached, case.chosen, case.rejected, **given).total


def compiled_fair(logits: Tensor, case: Case, weight: float) -> Callable[[], Tensor]:
    """Return the fair baseline, compiled; on a CPU by a backend that makes no code, which would take a minute."""
    backend = "inductor" if logits.device.type == "cuda" else "aot_eager"
    function = torch.compile(fair_of, backend=backend, dynamic=False)
    return lambda: function(logits, *case.wide, case.reference, weight)


def check(logits: Tensor, case: Case, forms: list[Form]) -> None:
    """Stop unless every form gives the value and the gradient of the fair baseline, for the first image."""
    first = replace(case, chosen=case.chosen[:1], rejected=case.rejected[:1], reference=case.reference[:1])
    z = logits.detach()[:1].clone().requires_grad_()
    for form in forms:
        assert_same(z, ours(z, first, form), partial(fair, z, first, float(form.anchored)))


def those_that_fit(
    sides: Mapping[str, Callable[[], object]],
) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """Return the sides that the device's memory is enough for, and why others are missing."""
    fit: dict[str, Callable[[], object]] = {}
    missing: dict[str, str] = {}
    for name, work in sides.items():
        try:
            work()
            fit[name] = work
        except torch.OutOfMemoryError:
            missing[name] = "not measured, since the device has too little memory for it"
            torch.cuda.empty_cache()
    return fit, missing


def halves(moved: Mapping[str, int], device: torch.device) -> dict[str, tuple[Tensor, Tensor]]:
    """Return by name what to copy where: half of the bytes are read, half are written; at most MOST_COPIED each."""
    sizes = {name: max(1, min(count // 2, MOST_COPIED)) for name, count in moved.items()}
    source, target = (torch.zeros(max(sizes.values()), dtype=torch.uint8, device=device) for _ in range(2))
    return {name: (source[:half], target[:half]) for name, half in sizes.items()}


def copy(half: tuple[Tensor, Tensor]) -> None:
    """Copy."""
    source, target = half
    target.copy_(source)
