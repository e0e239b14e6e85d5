"""Metrics of masks and preferences, and the statistics that compare them."""

from typing import TYPE_CHECKING

from segdpo.lazy import attach

if TYPE_CHECKING:
    from segdpo.metrics.calibration import Calibration as Calibration
    from segdpo.metrics.masks import HIGHER_IS_BETTER as HIGHER_IS_BETTER
    from segdpo.metrics.masks import MASK_METRICS as MASK_METRICS
    from segdpo.metrics.masks import MaskQuality as MaskQuality
    from segdpo.metrics.masks import Overlap as Overlap
    from segdpo.metrics.masks import mean_over_classes as mean_over_classes
    from segdpo.metrics.masks import measure_masks as measure_masks
    from segdpo.metrics.masks import per_image_overlap as per_image_overlap
    from segdpo.metrics.preferences import PairQuality as PairQuality
    from segdpo.metrics.preferences import best_of as best_of
    from segdpo.metrics.preferences import best_of_kl_bound as best_of_kl_bound
    from segdpo.metrics.preferences import kl_per_pixel as kl_per_pixel
    from segdpo.metrics.preferences import pair_ious as pair_ious
    from segdpo.metrics.statistics import LEVEL as LEVEL
    from segdpo.metrics.statistics import ClusteredInterval as ClusteredInterval
    from segdpo.metrics.statistics import Doubles as Doubles
    from segdpo.metrics.statistics import Interval as Interval
    from segdpo.metrics.statistics import Pooled as Pooled
    from segdpo.metrics.statistics import clustered_interval as clustered_interval
    from segdpo.metrics.statistics import folds_of as folds_of
    from segdpo.metrics.statistics import hierarchical_difference as hierarchical_difference
    from segdpo.metrics.statistics import holm as holm
    from segdpo.metrics.statistics import mean_interval as mean_interval
    from segdpo.metrics.statistics import paired_difference as paired_difference
    from segdpo.metrics.statistics import pooled_difference as pooled_difference
    from segdpo.metrics.statistics import pooled_win_rate as pooled_win_rate
    from segdpo.metrics.statistics import student as student
    from segdpo.metrics.statistics import student_p as student_p
    from segdpo.metrics.statistics import wilcoxon as wilcoxon
    from segdpo.metrics.statistics import win_rate as win_rate
    from segdpo.metrics.statistics import worst as worst

__getattr__, __dir__ = attach(__name__)
