"""Whether the policy starts where the reference is: then h = 0, and dpo = ln 2, at the first step."""

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from segdpo.scores import Score

TOLERANCE = 1e-4


def check_start(margin: Tensor, score: Score, pixels: int) -> None:
    """Warn if any |h| exceeds 1e-4 (of a summed score: 1e-4 a pixel), and say what it may come from.

    `margin` is h of the first batch, one a pair. Looks at the values, so it waits for the device.
    """
    worst = float(margin.abs().max())
    if worst <= TOLERANCE * (pixels if score.reduction == "sum" else 1):
        return
    rank_zero_warn(
        f"Expected the policy to start as the reference, h = 0 for every pair (and dpo = ln 2 = 0.693), but |h| is up "
        f"to {worst:.2g} at the first step. Likely causes: BatchNorm or dropout of the policy runs in training mode "
        "(keep hold_statistics=true); policy and reference were loaded from different checkpoints (give both the same "
        "file); a cache of reference scores that was filled on other devices or in another precision (delete the cache "
        "folder). Training goes on, but what it starts from is not the reference."
    )
