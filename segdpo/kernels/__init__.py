"""Kernels of the scores: sparse on a CPU, Triton on a GPU; `dispatch` chooses."""

from typing import TYPE_CHECKING

from segdpo.lazy import attach

if TYPE_CHECKING:
    from segdpo.kernels.dispatch import BACKENDS as BACKENDS
    from segdpo.kernels.dispatch import Backend as Backend
    from segdpo.kernels.dispatch import choose_backend as choose_backend
    from segdpo.kernels.dispatch import scores_by as scores_by
    from segdpo.kernels.index import MaskIndex as MaskIndex
    from segdpo.kernels.index import PairIndex as PairIndex
    from segdpo.kernels.index import index_of as index_of
    from segdpo.kernels.index import mask_index as mask_index
    from segdpo.kernels.index import not_ignored as not_ignored
    from segdpo.kernels.index import pair_index as pair_index
    from segdpo.kernels.low_resolution import LowResolution as LowResolution
    from segdpo.kernels.low_resolution import low_resolution_margin as low_resolution_margin
    from segdpo.kernels.low_resolution import sum_of_bands as sum_of_bands
    from segdpo.kernels.pixels import EvenMeasure as EvenMeasure
    from segdpo.kernels.pixels import Measure as Measure
    from segdpo.kernels.pixels import difference_factor as difference_factor
    from segdpo.kernels.pixels import log_probs as log_probs
    from segdpo.kernels.pixels import log_sum_exp_cancels as log_sum_exp_cancels
    from segdpo.kernels.pixels import mean_kl as mean_kl
    from segdpo.kernels.pixels import pixel_kl as pixel_kl
    from segdpo.kernels.pixels import score_dtype as score_dtype
    from segdpo.kernels.pixels import whole_score as whole_score
    from segdpo.kernels.plain import dense_margin as dense_margin
    from segdpo.kernels.planes import Planes as Planes
    from segdpo.kernels.sparse import Disagreement as Disagreement
    from segdpo.kernels.sparse import chosen_score as chosen_score
    from segdpo.kernels.sparse import entry_weights as entry_weights
    from segdpo.kernels.sparse import sums_of as sums_of

__getattr__, __dir__ = attach(__name__)
