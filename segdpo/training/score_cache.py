"""Reference scores computed once and kept: a step then costs the policy's forward alone."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from segdpo.losses.preference_loss import PreferenceLoss
from segdpo.scores import PairScores, Score
from segdpo.training.cache_filling import fill, filling_loaders, kept_random_state
from segdpo.training.content import digests_of, score_key, width_of
from segdpo.training.references import Answer, FrozenCopy, beside
from segdpo.training.score_table import Digests, ScoreCache, Values
from segdpo.training.scoring import PreferenceBatch, score_batch

log = logging.getLogger(__name__)


class CachedScores(FrozenCopy):
    """A frozen copy whose scores are kept on disk, found by content.

    A score is found by a digest of the very pixels that it was taken from: the view of the image, its valid pixels and
    the masks. Its folder is named after the weights, the score and the precision. So whatever changes a score makes a
    miss and never a wrong number. A batch with a miss is scored by the network; misses are counted in `misses` and told
    once.

    The cache is filled when training starts: images of validation and test, and those of training in each of the data
    module's `views`. It goes on where an earlier process was killed. The network then waits on the CPU.

    Args:
        network: the reference.
        folder: where the scores of all runs are kept.
        batch_size: of filling; None: as in training. Filling keeps no activations, so it may be larger.
    """

    def __init__(self, network: nn.Module, folder: str | Path, *, batch_size: int | None = None) -> None:
        super().__init__(network)
        self.misses = 0
        self._folder, self._batch_size = Path(folder), batch_size
        self._cache: ScoreCache | None = None
        self._seen: tuple[list[str], Digests] | None = None

    def check(self, loss: PreferenceLoss) -> None:
        """Refuse a loss that needs the reference's logits, and a score that cannot be named."""
        if loss.needs_drift:
            raise ValueError(
                "Expected a loss that needs the reference's scores alone but this one asks for `drift` (hold_anchor), "
                "which takes its logits, and a cache keeps none; use reference=frozen."
            )
        for score in loss.scores:
            score_key(self.network, self.fingerprint, score, "")

    def prepare(self, task: LightningModule, policy: nn.Module, scores: Sequence[Score]) -> None:
        """Fill the cache with what is not in it yet."""
        trainer = task.trainer
        precision = f"{trainer.precision}-{torch.get_float32_matmul_precision()}"
        keys = {score: score_key(self.network, self.fingerprint, score, precision) for score in scores}
        cache = ScoreCache(self._folder, keys)

        @torch.no_grad()
        def score(batch: PreferenceBatch) -> Mapping[Score, Values]:
            batch = trainer.strategy.batch_to_device(batch)
            # The chosen scores at once: asked for afterwards, each would pass over all logits again.
            found = score_batch(scores, beside(self.network, policy)(batch.image), batch, wants_chosen=scores)
            return {score: rows_of(pairs) for score, pairs in found.items()}

        loaders = filling_loaders(trainer, self._batch_size)
        with kept_random_state(), trainer.precision_plugin.forward_context():
            convert = trainer.precision_plugin.convert_input
            scored = fill(cache, loaders, score, convert=convert, quiet=not trainer.is_global_zero)
        trainer.strategy.barrier("reference scores")
        cache.read_again()
        log.info("Reference scores: %d pairs computed, kept in %s.", scored, self._folder)
        self.network.cpu()
        self._cache = cache

    def see(self, batch: PreferenceBatch) -> None:
        """Take the digests while the pixels are on the CPU."""
        if self._cache is not None:
            self._seen = (batch.ids, digests_of(batch))

    def __call__(self, batch: PreferenceBatch, policy: nn.Module) -> Answer:
        """Return the cached scores; the logits if there is a pair without, or no cache outside of training."""
        if self._cache is None:
            return super().__call__(batch, policy)
        # A batch keeps its list of ids on the way to the device.
        seen = self._seen is not None and self._seen[0] is batch.ids
        digests = self._seen[1] if self._seen is not None and seen else digests_of(batch)
        rows, found = self._cache.find(digests, width_of(batch))
        if not found.all():
            self._miss(batch, int((~found).sum()), len(found))
            return super().__call__(batch, policy)
        return {score: scores_of(torch.from_numpy(values).to(batch.image.device)) for score, values in rows.items()}

    def _miss(self, batch: PreferenceBatch, missing: int, pairs: int) -> None:
        if not self.misses:
            rank_zero_warn(
                f"Expected cached reference scores but {missing} of {pairs} pairs of a batch have none (images "
                f"{', '.join(batch.ids[:3])}…, view {int(batch.view[0])}): the network scores such batches now, which "
                "is right and costs a forward; said only once. If images are augmented, set datamodule.views=4 (any "
                "number), so that views come again; if they differ in size, crop or resize them to one size, since "
                "what a batch pads is another image."
            )
        self.misses += missing


def rows_of(scores: PairScores) -> Values:
    """Return a row of float32 a pair, or ranking: s⁺, then the scores of all masks but the last relative to it."""
    rows = torch.cat([scores.chosen[:, None], scores.ranked[:, :-1] - scores.ranked[:, -1:]], dim=1)
    return np.asarray(rows.float().cpu().numpy())


def scores_of(rows: Tensor) -> PairScores:
    """Return the scores that `rows_of` made the rows of."""
    ranked = torch.cat([rows[:, 1:], torch.zeros_like(rows[:, :1])], dim=1)
    return PairScores(chosen=rows[:, 0], margin=rows[:, 1], ranked=ranked)
