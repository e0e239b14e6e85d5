"""Geometry of masks: overlap, contours, morphology."""

from typing import TYPE_CHECKING

from segdpo.lazy import attach

if TYPE_CHECKING:
    from segdpo.masks.contours import CONTOUR_METRICS as CONTOUR_METRICS
    from segdpo.masks.contours import contour_options as contour_options
    from segdpo.masks.contours import measure_contours as measure_contours
    from segdpo.masks.large import bands as bands
    from segdpo.masks.large import count_values as count_values
    from segdpo.masks.morphology import PlaneRegion as PlaneRegion
    from segdpo.masks.morphology import close_gaps as close_gaps
    from segdpo.masks.morphology import depth as depth
    from segdpo.masks.morphology import displace as displace
    from segdpo.masks.morphology import drop_thin as drop_thin
    from segdpo.masks.morphology import grow_by as grow_by
    from segdpo.masks.morphology import keep_ignored as keep_ignored
    from segdpo.masks.morphology import label_parts as label_parts
    from segdpo.masks.morphology import object_classes as object_classes
    from segdpo.masks.morphology import shrink_by as shrink_by
    from segdpo.masks.morphology import smooth_noise as smooth_noise
    from segdpo.masks.overlap import Mask as Mask
    from segdpo.masks.overlap import Masks as Masks
    from segdpo.masks.overlap import count_classes as count_classes
    from segdpo.masks.overlap import differ as differ
    from segdpo.masks.overlap import iou_matrix as iou_matrix
    from segdpo.masks.overlap import mean_dice as mean_dice
    from segdpo.masks.overlap import mean_iou as mean_iou
    from segdpo.masks.overlap import mean_pairwise_iou as mean_pairwise_iou

__getattr__, __dir__ = attach(__name__)
