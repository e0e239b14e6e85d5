"""Scores of masks from logits: pairs, rankings, regions, and the distribution over masks."""

from typing import TYPE_CHECKING

from segdpo.lazy import attach

if TYPE_CHECKING:
    from segdpo.kernels import log_probs as log_probs
    from segdpo.scores.distribution import entropy as entropy
    from segdpo.scores.distribution import kl as kl
    from segdpo.scores.distribution import kl_of_pairs as kl_of_pairs
    from segdpo.scores.distribution import kl_to_reference as kl_to_reference
    from segdpo.scores.distribution import log_prob as log_prob
    from segdpo.scores.distribution import predicted_classes as predicted_classes
    from segdpo.scores.distribution import sample as sample
    from segdpo.scores.distribution import score_drift as score_drift
    from segdpo.scores.low_resolution import low_resolution_kl as low_resolution_kl
    from segdpo.scores.low_resolution import low_resolution_pairs as low_resolution_pairs
    from segdpo.scores.low_resolution import low_resolution_ranking as low_resolution_ranking
    from segdpo.scores.masks import MaskPairs as MaskPairs
    from segdpo.scores.masks import Pairs as Pairs
    from segdpo.scores.masks import Rankings as Rankings
    from segdpo.scores.outputs import ModelOutput as ModelOutput
    from segdpo.scores.outputs import logits_in as logits_in
    from segdpo.scores.pairs import score_pairs as score_pairs
    from segdpo.scores.pairs import score_pairs_by as score_pairs_by
    from segdpo.scores.rankings import score_masks as score_masks
    from segdpo.scores.rankings import score_masks_by as score_masks_by
    from segdpo.scores.rankings import score_ranking as score_ranking
    from segdpo.scores.rankings import score_rankings_by as score_rankings_by
    from segdpo.scores.regions import Boundary as Boundary
    from segdpo.scores.score import PairScores as PairScores
    from segdpo.scores.score import Quantity as Quantity
    from segdpo.scores.score import Reduction as Reduction
    from segdpo.scores.score import RegionName as RegionName
    from segdpo.scores.score import Score as Score

__getattr__, __dir__ = attach(__name__)
