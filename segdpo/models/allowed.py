"""What files may name: tables of targets for networks, adapters and evaluation, and what no yaml may name."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from segdpo.models.targets import steps_to


@dataclass(frozen=True)
class Family:
    """Every class `prefix`.NAME, or `prefix`.MODULE.NAME, that derives from one of `bases` and is defined in `home`."""

    prefix: str
    home: str
    bases: tuple[str, ...]
    besides: frozenset[str] = frozenset()

    def has(self, target: str) -> bool:
        """Return whether the target belongs to the family; imports modules of `home` only."""
        found = re.fullmatch(rf"{re.escape(self.prefix)}\.(?:[a-z]\w*\.)?[A-Za-z]\w*", target)
        if not found:
            return False
        try:
            cls = steps_to(target)[-1]
        except Exception:  # whatever an import may raise
            return False
        if not isinstance(cls, type) or not f"{cls.__module__}.".startswith(f"{self.home}."):
            return False
        # By the classes' own names, because libraries export them under other names too.
        mro = cls.__mro__
        derives = any(f"{base.__module__}.{base.__qualname__}" in self.bases for base in mro)
        return derives and not any(base.__name__ in self.besides for base in mro)


@dataclass(frozen=True)
class Table:
    """The targets that a kind of file may name: exact names with their parameters that take paths, and families.

    With `networks`, arguments that would download or read weights become None: the weights come from the file.
    """

    names: Mapping[str, tuple[str, ...]]
    families: tuple[Family, ...] = ()
    networks: bool = False

    def has(self, target: str) -> bool:
        """Return whether the table allows the target."""
        return target in self.names or any(family.has(target) for family in self.families)


def _under(package: str, names: str, paths: tuple[str, ...] = ()) -> dict[str, tuple[str, ...]]:
    return {f"{package}.{name}": paths for name in names.split()}


_MODULE = ("torch.nn.modules.module.Module",)

NETWORKS = Table(
    {
        **_under("segdpo.models", "DenseRewardModel RewardModel Segmenter ValueHead smp_model transformers_model wrap"),
        **_under(
            "segmentation_models_pytorch",
            "Unet UnetPlusPlus MAnet Linknet FPN PSPNet PAN DeepLabV3 DeepLabV3Plus UPerNet Segformer DPT create_model",
        ),
        **_under(
            "torchvision.models.segmentation",
            "deeplabv3_mobilenet_v3_large deeplabv3_resnet50 deeplabv3_resnet101 fcn_resnet50 fcn_resnet101 "
            "lraspp_mobilenet_v3_large",
        ),
        **_under(
            "transformers",
            "BeitForSemanticSegmentation Data2VecVisionForSemanticSegmentation DPTForSemanticSegmentation "
            "MobileNetV2ForSemanticSegmentation MobileViTForSemanticSegmentation MobileViTV2ForSemanticSegmentation "
            "SegformerForSemanticSegmentation UperNetForSemanticSegmentation "
            "BeitConfig Data2VecVisionConfig DPTConfig MobileNetV2Config MobileViTConfig MobileViTV2Config "
            "SegformerConfig UperNetConfig ConvNextConfig ConvNextV2Config Dinov2Config ResNetConfig SwinConfig",
        ),
    },
    (
        Family("torch.nn", "torch.nn.modules", _MODULE),
        Family("torch.nn.modules", "torch.nn.modules", _MODULE),
        # Without those that look up or download what their arguments name.
        Family(
            "monai.networks.nets",
            "monai.networks.nets",
            _MODULE,
            frozenset(
                ["BertPreTrainedModel", "CellSamWrapper", "MILModel", "MultiModal", "TorchVisionFCModel", "Transchex"]
            ),
        ),
    ),
    networks=True,
)


ADAPTERS = Table(_under("segdpo.models", "add_lora no_adapter"), networks=True)

# Steps that read files, or call functions, that their arguments name.
_READING = (
    "FDA HistogramMatching Lambda MixUp Mosaic OverlayElements PixelDistributionAdaptation TemplateTransform TextImage"
)
_STEP = ("albumentations.core.transforms_interface.BasicTransform", "albumentations.core.composition.BaseCompose")
_STEPS = ("segdpo.data.albumentations", "albumentations")

EVALUATION = Table(
    {
        **_under("segdpo.data", "CocoDataset", ("annotations", "images")),
        **_under("segdpo.data", "FolderDataset", ("root",)),
        **_under("segdpo.data", "HuggingFaceDataset", ("path",)),
        **_under("segdpo.data", "PackDataset", ("path",)),
        **_under("segdpo.data", "PlainFolder plain_folder", ("root",)),
        **_under("segdpo.data", "PetDataset VocDataset", ("root",)),
        **_under("segdpo.data", "Shapes Vessels"),
        **_under("segdpo.preferences", "Mined mined_of_old"),
        **_under("segdpo.data", "split_by_fold split_by_fraction"),
        **_under("segdpo.data", "ObjectCrop Pipeline"),
        # Candidates and judges that need no network; those with one read its weights from a path.
        **_under("segdpo.data", "Annotator annotate annotate_vessels"),
        **_under(
            "segdpo.preferences",
            "adjacent_ranks agreement all_pairs best_worst boundary_iou bradley_terry by_gap consensus corrupt dice "
            "existing flipped gumbel hd95 iou mixture random_pairs surface_dice",
        ),
    },
    tuple(Family(prefix, "albumentations", _STEP, frozenset(_READING.split())) for prefix in _STEPS),
)

# Where functions are defined that run, import, download or unpickle what their arguments say.
DANGEROUS = (
    "cloudpickle",
    "dill",
    "hydra",
    "IPython",
    "joblib",
    "numexpr",
    "numpy.f2py",
    "numpy.load",
    "omegaconf",
    "pandas.eval",
    "pandas.io",
    "pip",
    "segdpo.files",
    "setuptools",
    "sympy",
    "timm.models._helpers",
    "torch.hub",
    "torch.jit",
    "torch.package",
    "torch.serialization",
    "torch.utils.cpp_extension",
    "torchvision.datasets.utils",
)
FETCHING = ("load_state_dict", "load_state_dict_from_url")
# These return another target, named by their `path`.
LOOKING_UP = ("hydra.utils.get_method", "hydra.utils.get_class", "hydra.utils.get_object")
RESOLVERS = frozenset({"oc.env", "oc.select", "hydra", "now", "run_name"})
