"""A trained model: load, predict, export."""

from typing import TYPE_CHECKING

from segdpo.lazy import attach

if TYPE_CHECKING:
    from segdpo.inference.formats import FORMATS as FORMATS
    from segdpo.inference.formats import export as export
    from segdpo.inference.image_files import KINDS as KINDS
    from segdpo.inference.image_files import find_images as find_images
    from segdpo.inference.image_files import predict_files as predict_files
    from segdpo.inference.image_files import preparation_for as preparation_for
    from segdpo.inference.open import Description as Description
    from segdpo.inference.open import channels_of as channels_of
    from segdpo.inference.open import checkpoint_candidates as checkpoint_candidates
    from segdpo.inference.open import open_network as open_network
    from segdpo.inference.open import open_segmenter as open_segmenter
    from segdpo.inference.trained import TrainedSegmenter as TrainedSegmenter
    from segdpo.inference.trained import load as load

__getattr__, __dir__ = attach(__name__)
