"""How well a network likes a mask: scores of pairs and rankings of masks, from logits.

A score is a sum over pixels, s = Σ_i w_i q_i, of a quantity q (log p, or log p/(1−p), of the mask's class), over a
region (which pixels), with a reduction (which weights w). DESIGN: one shared set of pixels and weights for all masks
of a pair, so that the margin s⁺ − s⁻ is a sum over the disagreeing pixels alone and is computed as one.
"""

from segdpo.scores.drift import score_drift as score_drift
from segdpo.scores.many_masks import score_masks as score_masks
from segdpo.scores.many_masks import score_masks_by as score_masks_by
from segdpo.scores.pair_scores import PairScores as PairScores
from segdpo.scores.pairs import score_pairs as score_pairs
from segdpo.scores.rankings import score_ranking as score_ranking
from segdpo.scores.score import Score as Score
from segdpo.scores.score import score_pairs_by as score_pairs_by
