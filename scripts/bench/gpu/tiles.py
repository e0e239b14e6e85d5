"""K1: other sizes of tiles (`Tiles` of segdpo/kernels/triton_launch.py) against those of the code, best first.

What is faster in every row that uses it belongs into `Tiles`. Another size adds in another order, so the last bits of
margins change with it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from bench.cases import back, make_case, make_logits, margin_loss
from bench.gpu.bandwidth import DTYPE, SIZES, SMALL, Size
from bench.gpu.clock import in_turns
from bench.loss_speed import anchored_loss
from bench.row import Row
from bench.scale import Scale

# The module itself, since its constant is replaced.
triton_launch: Any = import_module("segdpo.kernels.triton_launch")
TILES: Any = triton_launch.TILES


@dataclass(frozen=True)
class Job:
    """What is measured, and the sizes that it depends on."""

    name: str
    size: int
    anchored: bool
    fields: tuple[str, ...]
    many_pairs: bool = False
    channels_last: bool = False


JOBS = (
    Job("margin loss", 0, anchored=False, fields=("flat", "few")),
    Job("margin loss, with image_index", 0, anchored=False, fields=("flat", "many"), many_pairs=True),
    Job("anchored loss", 0, anchored=True, fields=("few",)),
    Job("anchored loss, with image_index", 0, anchored=True, fields=("few", "many"), many_pairs=True),
    Job("anchored loss, channels_last", 0, anchored=True, fields=("last",), channels_last=True),
    Job("margin loss", 1, anchored=False, fields=("flat",)),
    Job("anchored loss", 1, anchored=True, fields=("flat",)),
)
CANDIDATES: dict[str, list[dict[str, int]]] = {
    "flat": [{"flat": flat, "flat_warps": warps} for flat in (512, 1024, 2048, 4096) for warps in (4, 8)],
    "few": [{"bytes": size, "warps": warps} for size in (1024, 2048, 4096) for warps in (4, 8)]
    + [{"few": few, "bytes": size} for few, size in ((2, 2048), (2, 4096), (8, 1024), (8, 2048))],
    "many": [{"many": many, "values": values} for many in (4, 8, 16, 32) for values in (2048, 4096)],
    "last": [{"last": last, "values": values} for last in (16, 32, 64) for values in (1024, 2048, 4096)],
}


def rows(scale: Scale, folder: Path) -> Iterator[Row]:
    """Measure every candidate of every job; on a CPU two candidates, by Triton's interpreter."""
    gpu = scale.device.type == "cuda"
    for job in JOBS:
        size = (SIZES if gpu else SMALL)[job.size]
        tiles = candidates_of(job)
        yield from rows_of(job, size, tiles if gpu else tiles[:2], scale)


def candidates_of(job: Job) -> list[Any]:
    """Return the candidates of a job, without the tiles of the code."""
    changed = [replace(TILES, **change) for field in job.fields for change in CANDIDATES[field]]
    return [tiles for tiles in dict.fromkeys(changed) if tiles != TILES]


def rows_of(job: Job, size: Size, tiles: list[Any], scale: Scale) -> Iterator[Row]:
    """Yield a row for each candidate, the fastest first."""
    loss = total_of(job, size, scale.device)
    every: dict[str, Callable[[], object]] = {title(one): partial(using, one, loss) for one in (TILES, *tiles)}
    sides = {name: work for name, work in every.items() if fits(work)}
    found = in_turns(sides, scale.rounds, scale.device)
    for name in sorted(found, key=lambda name: median(found[name])):
        if name != title(TILES):
            both = {"fair baseline": found[title(TILES)], "ours": found[name]}
            yield Row("K1", f"tiles of the code ÷ {name}; {job.name}; {size}", "ms", both, ("fair baseline", "ours"))


def total_of(job: Job, size: Size, device: torch.device) -> Callable[[], object]:
    """Return forward and backward of a loss by the Triton kernels."""
    case = make_case(size.images, max(2, size.channels), size.space, device)
    logits = make_logits(size.images, size.channels, size.space, device, DTYPE)
    if job.channels_last:
        logits = logits.detach().to(memory_format=torch.channels_last).requires_grad_()
    loss = anchored_loss() if job.anchored else margin_loss()
    index = torch.arange(size.images, device=device) if job.many_pairs else None

    def total() -> Tensor:
        masks = (case.chosen, case.rejected)
        return loss.on_logits(logits, case.cached, *masks, image_index=index, backend="triton").total

    return partial(back, logits, total)


def using(tiles: Any, work: Callable[[], object]) -> None:
    """Call `work` with other tiles."""
    triton_launch.TILES = tiles
    try:
        work()
    finally:
        triton_launch.TILES = TILES


def fits(work: Callable[[], object]) -> bool:
    """Return whether the GPU can run tiles of this size."""
    try:
        work()
    except OutOfResources:
        return False
    return True


def title(tiles: Any) -> str:
    """Return what differs from the code, for the table."""
    changed = {name: value for name, value in vars(tiles).items() if value != getattr(TILES, name)}
    return ", ".join(f"{name} {value}" for name, value in changed.items()) or "as in the code"
