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
    from segdpo.inference.load import Description as Description
    from segdpo.inference.load import channels_of as channels_of
    from segdpo.inference.load import checkpoint_candidates as checkpoint_candidates
    from segdpo.inference.load import open_network as open_network
    from segdpo.inference.load import open_segmenter as open_segmenter

__getattr__, __dir__ = attach(__name__)
