"""segdpo: train image-segmentation models from preferences between masks."""

from typing import TYPE_CHECKING

from segdpo.lazy import attach

if TYPE_CHECKING:
    from segdpo.checks import IGNORE as IGNORE
    from segdpo.kernels import MaskIndex as MaskIndex
    from segdpo.kernels import PairIndex as PairIndex
    from segdpo.kernels import mask_index as mask_index
    from segdpo.kernels import pair_index as pair_index
    from segdpo.losses import Anchor as Anchor
    from segdpo.losses import LossTerms as LossTerms
    from segdpo.losses import PreferenceLoss as PreferenceLoss
    from segdpo.losses import anchors as anchors
    from segdpo.losses import listwise as listwise
    from segdpo.losses import objectives as objectives
    from segdpo.scores import Boundary as Boundary
    from segdpo.scores import PairScores as PairScores
    from segdpo.scores import Score as Score
    from segdpo.scores import kl_to_reference as kl_to_reference
    from segdpo.scores import score_drift as score_drift
    from segdpo.scores import score_masks as score_masks
    from segdpo.scores import score_pairs as score_pairs
    from segdpo.scores import score_ranking as score_ranking

if TYPE_CHECKING:  # these need segdpo[train], so that `from segdpo import *` leaves them out
    from segdpo.data import DataModule as DataModule
    from segdpo.inference import load as load
    from segdpo.recipes import Summary as Summary
    from segdpo.recipes import train as train
    from segdpo.training import PreferenceTask as PreferenceTask

__version__ = "0.2.0"
__getattr__, __dir__ = attach(__name__)
