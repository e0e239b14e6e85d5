"""Segmentation models, reward models, adapters, weights."""

from typing import TYPE_CHECKING

from segdpo.lazy import attach

if TYPE_CHECKING:
    from segdpo.models.adapters import adapter_off as adapter_off
    from segdpo.models.adapters import add_lora as add_lora
    from segdpo.models.adapters import has_adapter as has_adapter
    from segdpo.models.adapters import merge_adapter as merge_adapter
    from segdpo.models.adapters import no_adapter as no_adapter
    from segdpo.models.adapters import save_adapter as save_adapter
    from segdpo.models.allowed import ADAPTERS as ADAPTERS
    from segdpo.models.allowed import EVALUATION as EVALUATION
    from segdpo.models.hugging_face import transformers_model as transformers_model
    from segdpo.models.hugging_face import without_download as without_download
    from segdpo.models.pretrained import POLICY as POLICY
    from segdpo.models.pretrained import local_copy as local_copy
    from segdpo.models.pretrained import push_folder as push_folder
    from segdpo.models.pretrained import weights_path as weights_path
    from segdpo.models.reward_model import DenseRewardModel as DenseRewardModel
    from segdpo.models.reward_model import RewardModel as RewardModel
    from segdpo.models.reward_model import load_reward_model as load_reward_model
    from segdpo.models.reward_model import reward_inputs as reward_inputs
    from segdpo.models.reward_model import save_reward_model as save_reward_model
    from segdpo.models.reward_model import soft_inputs as soft_inputs
    from segdpo.models.segmenter import IMAGENET_MEAN as IMAGENET_MEAN
    from segdpo.models.segmenter import IMAGENET_STD as IMAGENET_STD
    from segdpo.models.segmenter import Segmenter as Segmenter
    from segdpo.models.segmenter import freeze_parts as freeze_parts
    from segdpo.models.segmenter import hold_statistics as hold_statistics
    from segdpo.models.segmenter import parts_of as parts_of
    from segdpo.models.segmenter import smp_model as smp_model
    from segdpo.models.segmenter import wrap as wrap
    from segdpo.models.targets import current_name as current_name
    from segdpo.models.trust import build_named as build_named
    from segdpo.models.trust import check_resolvers as check_resolvers
    from segdpo.models.trust import check_targets as check_targets
    from segdpo.models.trust import checked as checked
    from segdpo.models.trust import without_interpolations as without_interpolations
    from segdpo.models.value_head import ValueHead as ValueHead
    from segdpo.models.weights import check_archive as check_archive
    from segdpo.models.weights import checksum as checksum
    from segdpo.models.weights import fingerprint as fingerprint
    from segdpo.models.weights import fingerprint_tensors as fingerprint_tensors
    from segdpo.models.weights import from_json as from_json
    from segdpo.models.weights import load_weights as load_weights
    from segdpo.models.weights import read_checkpoint as read_checkpoint
    from segdpo.models.weights import read_header as read_header
    from segdpo.models.weights import read_tensors as read_tensors
    from segdpo.models.weights import save_weights as save_weights

__getattr__, __dir__ = attach(__name__)
