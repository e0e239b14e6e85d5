"""The one form that every network takes here: images in, logits of the same size out. The only door to smp."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from segdpo.kernels.low_resolution import LowResolution
from segdpo.models.upsampling import HeldBack


class Segmenter(nn.Module):
    """Any network as image [B, channels, H, W] -> logits [B, 1 or classes, H, W].

    What is done here is done nowhere else: pad the image at the bottom and the right, by repeating its edge, to a
    `multiple` of pixels and crop the logits back; pick the logits out of what the network returns (a tensor, a
    tuple's first, a dict's "out", an object's `.logits`); upsample a low-resolution head bilinearly.

    Args:
        network: the network itself; its names start with "network." in the state_dict.
        classes: how many classes the data has, background counted. Two may be one logit (sigmoid) or two (softmax).
        multiple: heights and widths that the network takes; for a U-Net with five halvings, 32.
    """

    def __init__(self, network: nn.Module, classes: int, multiple: int = 1) -> None:
        super().__init__()
        if multiple < 1:
            raise ValueError(f"Expected a multiple of at least 1 pixel but got {multiple}; set model.multiple.")
        self.network = network
        self.channels = channels_for(classes)
        self.classes = classes
        self.multiple = multiple

    def forward(
        self, image: Float[Tensor, "images channels height width"]
    ) -> Float[Tensor, "images logits height width"]:
        """Return one logit (two classes) or one a class for each pixel."""
        padded = self._pad(image)
        logits = self._check(_pick_logits(self.network(padded)))
        if logits.shape[-2:] != padded.shape[-2:]:
            logits = nn.functional.interpolate(logits, padded.shape[-2:], mode="bilinear", align_corners=False)
        if padded is image:
            return logits
        # Negative padding rather than a slice, which would tie a traced graph to the size as well.
        right, below = self._missing(image)
        return nn.functional.pad(logits, (0, -right, 0, -below))

    def low_resolution(self, image: Float[Tensor, "images channels height width"]) -> LowResolution:
        """Return the logits before the bilinear upsampling that ends the network, or that `forward` adds to it.

        Whoever computes it: `forward` for a head of Hugging Face, smp's segmentation head, torchvision's networks. A
        network that does not end in one is refused.
        """
        padded = self._pad(image)
        grid, size = ((int(some.shape[-2]), int(some.shape[-1])) for some in (padded, image))
        with HeldBack(grid) as held:
            try:
                output = self.network(padded)
            except RuntimeError as error:
                if held.some:
                    error.add_note("low_resolution held back an upsampling inside the network; leave it false.")
                raise
        logits = self._check(_pick_logits(output))
        align_corners = held.align_corners_of(logits)
        if align_corners is None and (held.some or logits.shape[-2:] == padded.shape[-2:]):
            raise ValueError(
                f"Expected a network that ends in a bilinear upsampling but {type(self.network).__name__} computes its "
                "logits at the image's size; leave low_resolution=false, or choose a network with such a head "
                "(segformer_smp, segformer_hf, deeplabv3plus, fpn, deeplabv3_torchvision, lraspp_torchvision)."
            )
        return LowResolution(logits, grid, size, bool(align_corners))

    def _pad(self, image: Tensor) -> Tensor:
        right, below = self._missing(image)
        # While a graph for any size is traced, "is there something to pad" would tie it to this size.
        if self.multiple > 1 and (torch.compiler.is_compiling() or bool(right or below)):
            return nn.functional.pad(image, (0, right, 0, below), mode="replicate")
        return image

    def _missing(self, image: Tensor) -> tuple[int, int]:
        """Return how many columns and rows an image lacks."""
        height, width = image.shape[-2:]
        return -width % self.multiple, -height % self.multiple

    def _check(self, logits: Tensor) -> Tensor:
        if logits.ndim != 4:
            raise ValueError(f"Expected logits [images, classes, height, width] but got shape {tuple(logits.shape)}.")
        if logits.shape[1] not in (self.channels, self.classes):
            raise ValueError(
                f"Expected {self.channels} channels of logits for model.classes={self.classes} but "
                f"{type(self.network).__name__} returned {logits.shape[1]}; set model.classes, or give the network as "
                "many outputs."
            )
        return logits


def channels_for(classes: int) -> int:
    """Return how many logits a pixel has by default: one for two classes (sigmoid), else one a class (softmax)."""
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 2:
        raise ValueError(
            f"Expected model.classes to be at least 2, background counted, but got {classes!r}; "
            "null takes the number from the data when train.py builds the model."
        )
    return 1 if classes == 2 else classes


def _pick_logits(output: object) -> Tensor:
    """Find the logits in what a network returns."""
    if isinstance(output, Tensor):
        return output
    # Before Mapping: the outputs of Hugging Face are both.
    if isinstance(logits := getattr(output, "logits", None), Tensor):
        return logits
    if isinstance(output, Mapping) and "out" in output:
        return _pick_logits(output["out"])
    if isinstance(output, tuple | list) and output:
        return _pick_logits(output[0])
    got = f"a dict of {sorted(map(str, output))}" if isinstance(output, Mapping) else type(output).__name__
    raise TypeError(
        'Expected the network to return logits as a tensor, a tuple, a dict with "out" or an object with .logits but '
        f"got {got}; wrap it in a module that picks them out."
    )


def smp_model(
    architecture: str,
    encoder_name: str,
    *,
    classes: int,
    encoder_weights: str | bool | None = None,
    in_channels: int = 3,
    channels: int | None = None,
    **options: Any,
) -> Segmenter:
    """Build any architecture of segmentation_models_pytorch on any of its encoders.

    `channels` of logits: left out, one for two classes. `options` go to the architecture's constructor.

    >>> smp_model("unet", "resnet18", classes=2, encoder_depth=3, decoder_channels=[32, 16, 8]).multiple
    8
    """
    # It takes seconds to import, and whoever brings another network does not need it.
    import segmentation_models_pytorch as smp

    factories = smp.MODEL_ARCHITECTURES_MAPPING
    name = architecture.lower()
    _check_name("model.architecture", name, factories)
    if not encoder_name.startswith(("tu-", "timm-")):
        _check_name("model.encoder_name", encoder_name, smp.encoders.encoders)
        _check_options(factories[name], options)
    if options.get("activation") is not None:
        raise ValueError(
            f"Expected raw logits but activation={options['activation']!r} turns them into something else; "
            "leave model.activation out."
        )
    options |= {"in_channels": in_channels, "classes": channels_for(classes) if channels is None else channels}
    try:
        network = factories[name](encoder_name=encoder_name, encoder_weights=encoder_weights, **options)
    except (KeyError, OSError) as error:
        raise ValueError(
            f"Expected weights {encoder_weights!r} for the encoder {encoder_name} but they cannot be had ({error}); "
            "choose others, connect to the network (they are downloaded once), or set model.encoder_weights=null."
        ) from error
    return Segmenter(network, classes, multiple=network.encoder.output_stride)


def wrap(
    network_factory: Callable[..., nn.Module],
    *,
    classes: int,
    classes_argument: str | None = "num_classes",
    channels: int | None = None,
    multiple: int = 1,
) -> Segmenter:
    """Build any network that returns logits: `network_factory(num_classes=…)`, in a yaml a `_partial_` of it.

    `classes_argument` is how the factory calls its number of outputs; None: it takes none and has the right number.
    """
    if isinstance(network_factory, nn.Module) or not callable(network_factory):
        raise TypeError(
            f"Expected network_factory to be a function that makes the network but got "
            f"{type(network_factory).__name__}; add `_partial_: true` beside its `_target_`."
        )
    outputs = channels_for(classes) if channels is None else channels
    network = network_factory(**({} if classes_argument is None else {classes_argument: outputs}))
    return Segmenter(network, classes, multiple)


def _check_name(what: str, name: str, known: Iterable[str]) -> None:
    names = sorted(known)
    if name in names:
        return
    close = difflib.get_close_matches(name, names, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "see the list."
    raise ValueError(f"Expected {what} to be one of {', '.join(names)} but got {name!r}; {hint}")


def _check_options(factory: Callable[..., nn.Module], options: Mapping[str, object]) -> None:
    """Refuse misspelt options: smp hands what it does not know on to timm's encoders and else drops it."""
    known = {name for name, p in inspect.signature(factory).parameters.items() if p.kind is not p.VAR_KEYWORD}
    for option in options:
        _check_name("an option of model", option, known)
