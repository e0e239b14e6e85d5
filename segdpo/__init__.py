"""segdpo: train image-segmentation networks from preferences between masks."""

from segdpo.kernels.mask_index import MaskIndex as MaskIndex
from segdpo.kernels.mask_index import mask_index as mask_index
from segdpo.kernels.pair_index import PairIndex as PairIndex
from segdpo.kernels.pair_index import pair_index as pair_index
from segdpo.losses import anchors as anchors
from segdpo.losses import listwise as listwise
from segdpo.losses import objectives as objectives
from segdpo.losses.preference_loss import Anchor as Anchor
from segdpo.losses.preference_loss import PreferenceLoss as PreferenceLoss
from segdpo.losses.terms import LossTerms as LossTerms
from segdpo.regions import IGNORE as IGNORE
from segdpo.regions import Boundary as Boundary
from segdpo.scores import PairScores as PairScores
from segdpo.scores import Score as Score
from segdpo.scores import score_drift as score_drift
from segdpo.scores import score_masks as score_masks
from segdpo.scores import score_pairs as score_pairs
from segdpo.scores import score_ranking as score_ranking

__version__ = "0.1.0"
