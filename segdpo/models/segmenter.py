"""Segmentation models that return logits of the size of the image, with parts frozen if wanted."""

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from segdpo.kernels import LowResolution

# What encoders trained on ImageNet expect of images in [0, 1], in the order of RGB.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def freeze_parts(module: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Take parameters out of training by name and return their names.

    A pattern as of file names ("network.encoder*", "*.bias") is held against the names of parameters and of modules;
    a module that matches is frozen whole. Add an adapter before: what is frozen then counts for it too. The running
    statistics of frozen layers move on in training unless `hold_statistics` holds them.
    """
    patterns = [patterns] if isinstance(patterns, str) else patterns
    parameters = dict(module.named_parameters())
    frozen: set[str] = set()
    for pattern in patterns:
        matched = [name for name in parameters if any(fnmatchcase(part, pattern) for part in _parts_of(name))]
        if not matched:
            raise ValueError(
                f"Expected {pattern!r} to match parameters of the network but it matches none; there are "
                f"{', '.join(parts_of(parameters))} and what is in them."
            )
        frozen.update(matched)
    for name in frozen:
        parameters[name].requires_grad_(False)
    if frozen and not any(parameter.requires_grad for parameter in parameters.values()):
        raise ValueError(f"Expected something left to train but {', '.join(patterns)} freezes it all; freeze less.")
    return [name for name in parameters if name in frozen]


def hold_statistics(module: nn.Module) -> None:
    """Make the network compute in training what it computes in evaluation; call it again after every `.train()`.

    Normalisation uses its running statistics and leaves them alone, nothing is dropped. A LoRA's own dropout stays: it
    changes nothing while the adapter is what it starts as, zero.
    """
    for name, part in module.named_modules():
        # Not only the layers called dropout: attention drops by its own flag, so do stochastic depth and
        # whatever a network brings along. Gradients do not ask for the mode.
        if "lora_dropout" not in name.split("."):
            part.training = False


def parts_of(names: Iterable[str], depth: int = 2) -> list[str]:
    """Return the distinct beginnings of dotted names, to say what there is."""
    return list(dict.fromkeys(".".join(name.split(".")[:depth]) for name in names))


def _parts_of(name: str) -> list[str]:
    """Return a parameter's name and those of all modules that it is in: a.b.weight, a.b, a."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]


class HeldBack(TorchFunctionMode):
    """Inside the `with`, a bilinear upsampling to `size` hands its input on as it is, and is remembered.

    Whatever calls it: nn.Upsample in a head, F.interpolate in a forward. Only for networks that return what they
    upsampled: `before` says whether they did.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self._size = size
        self._held: list[tuple[Tensor, bool]] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Hold back what `F.interpolate` was asked for, if it is an upsampling to the size."""
        given = dict(kwargs or {})
        if func is F.interpolate:
            asked: dict[str, Any] = {"size": None, "scale_factor": None, "mode": "nearest", "align_corners": None}
            asked |= dict(zip(("input", "size", "scale_factor", "mode", "align_corners"), args, strict=False)) | given
            if self._is_ours(asked):
                self._held.append((asked["input"], bool(asked["align_corners"])))
                return asked["input"]
        return func(*args, **given)

    @property
    def some(self) -> bool:
        """Whether anything was held back."""
        return bool(self._held)

    def align_corners_of(self, logits: Tensor) -> bool | None:
        """Return how a network that returned `logits` would have upsampled them; None: it did not at the end."""
        return next((align for held, align in self._held if held is logits), None)

    def _is_ours(self, asked: Mapping[str, Any]) -> bool:
        small = asked["input"]
        if asked["mode"] != "bilinear" or asked.get("antialias") or small.ndim != 4 or small.shape[-2:] == self._size:
            return False
        if asked["size"] is not None:
            return _both(asked["size"]) == self._size
        # By a factor, pixels are read by the factor and not by the sizes: the same only where nothing is rounded.
        factors = _both(asked["scale_factor"])
        return all(side * f == whole for side, f, whole in zip(small.shape[-2:], factors, self._size, strict=True))


def _both(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list | torch.Size) else (value, value)


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


def segformer(num_labels: int, *, pretrained: str | None = None, **config: Any) -> nn.Module:
    """Build a SegFormer that returns an object with `.logits` at a quarter of the image's size.

    `config` is what transformers' SegformerConfig takes. `pretrained`, a folder or a name on the hub, brings config
    and weights; a head for another number of labels starts anew.
    """
    try:
        # An optional library, and seconds to import.
        hugging_face: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise ImportError(
            "Expected the library transformers, which builds this network, but it is not installed; "
            "pip install transformers, or choose model=segformer_smp."
        ) from error
    known = set(inspect.signature(hugging_face.SegformerConfig).parameters) - {"kwargs"}
    wrong = sorted(set(config) - known)
    if wrong:
        raise ValueError(
            f"Expected options of SegformerConfig ({', '.join(sorted(known))}) but got {', '.join(wrong)}; "
            "correct the name in model.network_factory."
        )
    model = hugging_face.SegformerForSemanticSegmentation
    network: nn.Module
    if pretrained is None:
        network = model(hugging_face.SegformerConfig(num_labels=num_labels, **config))
    else:
        network = model.from_pretrained(pretrained, num_labels=num_labels, ignore_mismatched_sizes=True, **config)
    return network
