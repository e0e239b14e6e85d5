"""Records, formats, transforms, batches and loaders."""

from typing import TYPE_CHECKING

from segdpo.lazy import attach

if TYPE_CHECKING:
    from segdpo.data.annotators import Annotator as Annotator
    from segdpo.data.annotators import annotate as annotate
    from segdpo.data.annotators import checked_mask as checked_mask
    from segdpo.data.annotators import starting_mask as starting_mask
    from segdpo.data.batches import Batch as Batch
    from segdpo.data.batches import PairBatch as PairBatch
    from segdpo.data.batches import RankingBatch as RankingBatch
    from segdpo.data.batches import SupervisedBatch as SupervisedBatch
    from segdpo.data.checking import Check as Check
    from segdpo.data.checking import Finding as Finding
    from segdpo.data.checking import check_source as check_source
    from segdpo.data.datamodule import DataModule as DataModule
    from segdpo.data.datasets import GoldBatch as GoldBatch
    from segdpo.data.datasets import GoldBatches as GoldBatches
    from segdpo.data.datasets import PreferenceDataset as PreferenceDataset
    from segdpo.data.datasets import RankingDataset as RankingDataset
    from segdpo.data.datasets import RecordViews as RecordViews
    from segdpo.data.datasets import SupervisedDataset as SupervisedDataset
    from segdpo.data.formats.coco import CocoDataset as CocoDataset
    from segdpo.data.formats.coco import decode_region as decode_region
    from segdpo.data.formats.coco import encode_coco_mask as encode_coco_mask
    from segdpo.data.formats.coco import write_coco as write_coco
    from segdpo.data.formats.folder import FolderDataset as FolderDataset
    from segdpo.data.formats.folder import checksum as checksum
    from segdpo.data.formats.folder import write_folder as write_folder
    from segdpo.data.formats.pack import PackDataset as PackDataset
    from segdpo.data.formats.pack import PackWriter as PackWriter
    from segdpo.data.formats.pack_files import write_table as write_table
    from segdpo.data.formats.plain_folder import PlainFolder as PlainFolder
    from segdpo.data.formats.torchvision_sets import PetDataset as PetDataset
    from segdpo.data.formats.torchvision_sets import VocDataset as VocDataset
    from segdpo.data.images import SUFFIXES as SUFFIXES
    from segdpo.data.images import ImageFile as ImageFile
    from segdpo.data.images import decode_image as decode_image
    from segdpo.data.images import encode_image as encode_image
    from segdpo.data.images import encode_mask as encode_mask
    from segdpo.data.pictures import PanelRow as PanelRow
    from segdpo.data.pictures import class_colours as class_colours
    from segdpo.data.pictures import data_uri as data_uri
    from segdpo.data.pictures import overlay as overlay
    from segdpo.data.pictures import shrink as shrink
    from segdpo.data.record import Candidates as Candidates
    from segdpo.data.record import Image as Image
    from segdpo.data.record import MaskSource as MaskSource
    from segdpo.data.record import Pair as Pair
    from segdpo.data.record import Record as Record
    from segdpo.data.record import RecordInfo as RecordInfo
    from segdpo.data.record import RecordSource as RecordSource
    from segdpo.data.record import info_of as info_of
    from segdpo.data.record import is_text as is_text
    from segdpo.data.record import record_rng as record_rng
    from segdpo.data.sampling import EpochLoader as EpochLoader
    from segdpo.data.sampling import EpochSampler as EpochSampler
    from segdpo.data.shapes import Shapes as Shapes
    from segdpo.data.sources import FileSource as FileSource
    from segdpo.data.sources import Joined as Joined
    from segdpo.data.sources import Subset as Subset
    from segdpo.data.sources import file_of as file_of
    from segdpo.data.sources import open_source as open_source
    from segdpo.data.sources import write_pack as write_pack
    from segdpo.data.sources import write_source as write_source
    from segdpo.data.splits import Numbers as Numbers
    from segdpo.data.splits import Splits as Splits
    from segdpo.data.splits import infos_of as infos_of
    from segdpo.data.splits import limited as limited
    from segdpo.data.splits import split_by_fold as split_by_fold
    from segdpo.data.splits import split_by_fraction as split_by_fraction
    from segdpo.data.transforms import Pipeline as Pipeline
    from segdpo.data.transforms import albumentations as albumentations
    from segdpo.data.transforms import coordinate_masks as coordinate_masks
    from segdpo.data.transforms import image_box as image_box
    from segdpo.data.transforms import normalise as normalise

__getattr__, __dir__ = attach(__name__)
