"""Segmentation models: any network as image → logits of the image's size, builders, and freezing."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from segdpo.kernels import LowResolution
from segdpo.scores import ModelOutput, logits_in

# What encoders trained on ImageNet expect of images in [0, 1], in the order of RGB.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Segmenter(nn.Module):
    """Any network as a function from images to logits of the images' size.

    It pads the image at the bottom and the right, by repeating its edge, to a `multiple` of pixels and crops the logits
    back; finds the logits in what the network returns (a tensor, the first of a tuple, a dict's "out", an object's
    `.logits`); and upsamples low-resolution logits bilinearly.

    Args:
        network: maps images [images, channels, height, width] to logits [images, 1 or classes, *, *]; its names start
            with "network." in the state_dict.
        classes: number of classes, background included. Two may be one logit (sigmoid) or two (softmax).
        multiple: heights and widths have to be multiples of this; for a U-Net with five halvings, 32.

    Attributes:
        description: what builds the network (`model`), names of the classes (`classes`), how images are prepared
            (`mean`, `std`, `preparation`), and what it was trained from (`training`); None: not known.

    >>> Segmenter(nn.Conv2d(3, 4, 1), classes=4)(torch.zeros(2, 3, 5, 7)).shape
    torch.Size([2, 4, 5, 7])
    """

    def __init__(self, network: nn.Module, classes: int, multiple: int = 1) -> None:
        super().__init__()
        if multiple < 1:
            raise ValueError(f"Expected a multiple of at least 1 pixel but got {multiple}; set model.multiple.")
        self.network = network
        self.channels = channels_for(classes)
        self.classes = classes
        self.multiple = multiple
        self.description: Mapping[str, Any] | None = None

    @staticmethod
    def from_pretrained(path: str | Path, *, trusted: Sequence[str] = ()) -> "Segmenter":
        """Return a trained network in evaluation mode, an adapter merged, with its description.

        Args:
            path: a run's folder (its policy), a folder of `save_pretrained`, a .safetensors with "config" in the
                header, a .ckpt of a run, or, where no such path exists, OWNER/NAME or OWNER/NAME@REVISION on the
                Hugging Face hub, which is downloaded once.
            trusted: packages that the description may build networks from, in addition to the table in
                docs/howto/predict.md. What a description names is called, so name only packages that you know.

        Raises:
            ValueError: if the file is damaged, has no description, or names something that is not trusted.
            FileNotFoundError: there is nothing of that name here, and nothing that can be read on the hub.
        """
        from segdpo.models.pretrained import load_pretrained

        return load_pretrained(path, trusted)

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        license: str | None = None,  # noqa: A002
        repo_id: str | None = None,
    ) -> None:
        """Write model.safetensors, config.json and the model card README.md.

        A network of segmentation_models_pytorch or transformers is written as its library writes it, too:
        `smp.from_pretrained(folder)` and `AutoModelForSemanticSegmentation.from_pretrained(folder)` load it.

        Args:
            folder: files of these names in it are replaced.
            license: for the model card, by its name on the hub, such as "mit", "apache-2.0", "cc-by-4.0"; None: not
                known.
            repo_id: OWNER/NAME that the model card names; None: the folder's name.

        Raises:
            ValueError: the network has no description, or an adapter.
        """
        from segdpo.models.pretrained import save_pretrained

        save_pretrained(self, folder, license, repo_id)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        license: str | None = None,  # noqa: A002
        private: bool | None = None,
        token: str | None = None,
    ) -> str:
        """Publish what `save_pretrained` writes as a repository of the Hugging Face hub.

        Args:
            repo_id: OWNER/NAME; it is made if it is not there.
            license: see `save_pretrained`.
            private: of a new repository; None: as your account has it.
            token: None: that of `hf auth login`.

        Returns:
            The address of the commit.
        """
        from segdpo.models.pretrained import push_folder

        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, license=license, repo_id=repo_id)
            return push_folder(Path(folder), repo_id, private=private, token=token)

    def forward(
        self, image: Float[Tensor, "images channels height width"]
    ) -> Float[Tensor, "images logits height width"]:
        """Return the logits of each pixel: one (two classes) or one per class."""
        padded = self._pad(image)
        logits = self._check(_pick_logits(self.network(padded)))
        if logits.shape[-2:] != padded.shape[-2:]:
            logits = nn.functional.interpolate(logits, padded.shape[-2:], mode="bilinear", align_corners=False)
        if padded is image:
            return logits
        # Negative padding instead of a slice, which would fix the size in a traced graph.
        right, below = self._missing(image)
        return nn.functional.pad(logits, (0, -right, 0, -below))

    def low_resolution(self, image: Float[Tensor, "images channels height width"]) -> LowResolution:
        """Return the logits before the bilinear upsampling at the end of the network, or the one that `forward` adds.

        Works for networks of Hugging Face, torchvision, and those of smp whose head upsamples.

        Raises:
            ValueError: if the network does not end in a bilinear upsampling.
        """
        padded = self._pad(image)
        grid, size = ((int(some.shape[-2]), int(some.shape[-1])) for some in (padded, image))
        with _SkipUpsampling(grid) as skipped:
            try:
                output = self.network(padded)
            except RuntimeError as error:
                if skipped.any:
                    error.add_note("low_resolution skipped an upsampling inside the network; set it to false.")
                raise
        logits = self._check(_pick_logits(output))
        align_corners = skipped.align_corners_of(logits)
        if align_corners is None and (skipped.any or logits.shape[-2:] == padded.shape[-2:]):
            raise ValueError(
                f"Expected a network that ends in a bilinear upsampling but {type(self.network).__name__} computes its "
                "logits at the image's size; set low_resolution=false, or choose a network with such a head "
                "(segformer_smp, segformer_hf, deeplabv3plus, fpn, deeplabv3_torchvision, lraspp_torchvision)."
            )
        return LowResolution(logits, grid, size, bool(align_corners))

    def _pad(self, image: Tensor) -> Tensor:
        right, below = self._missing(image)
        # While a graph is traced for any size, this condition would fix the size.
        if self.multiple > 1 and (torch.compiler.is_compiling() or bool(right or below)):
            return nn.functional.pad(image, (0, right, 0, below), mode="replicate")
        return image

    def _missing(self, image: Tensor) -> tuple[int, int]:
        """Return how many columns and rows are missing to the next multiple."""
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

    Args:
        architecture: such as "unet", "fpn", "deeplabv3plus", "segformer".
        encoder_name: such as "resnet34"; "tu-NAME" for an encoder of timm.
        classes: number of classes, background included.
        encoder_weights: such as "imagenet", downloaded once; None: random.
        in_channels: channels of the images.
        channels: of the logits; None: one for two classes, else one per class.
        options: of the architecture's constructor.

    >>> smp_model("unet", "resnet18", classes=2, encoder_depth=3, decoder_channels=[32, 16, 8]).multiple
    8
    """
    # Slow to import, and not needed for other networks.
    import segmentation_models_pytorch as smp

    factories = smp.MODEL_ARCHITECTURES_MAPPING
    name = architecture.lower()
    _check_name("model.architecture", name, factories)
    if not encoder_name.startswith(("tu-", "timm-")):
        _check_name("model.encoder_name", encoder_name, smp.encoders.encoders)
        _check_options(factories[name], options)
    if options.get("activation") is not None:
        raise ValueError(f"Expected raw logits but got activation={options['activation']!r}; remove model.activation.")
    options |= {"in_channels": in_channels, "classes": channels_for(classes) if channels is None else channels}
    try:
        network = factories[name](encoder_name=encoder_name, encoder_weights=encoder_weights, **options)
    except (KeyError, OSError) as error:
        raise ValueError(
            f"Expected weights {encoder_weights!r} for the encoder {encoder_name} but they cannot be loaded ({error}); "
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
    """Build a Segmenter of any network that returns logits.

    Args:
        network_factory: a class or function that builds the network; in yaml, with `_partial_: true`.
        classes: number of classes, background included.
        classes_argument: name of the factory's argument for the number of outputs; None: it has none.
        channels: of the logits; None: one for two classes, else one per class.
        multiple: heights and widths have to be multiples of this.

    >>> wrap(lambda num_classes: nn.Conv2d(3, num_classes, 1), classes=4).network
    Conv2d(3, 4, kernel_size=(1, 1), stride=(1, 1))
    """
    if isinstance(network_factory, nn.Module) or not callable(network_factory):
        raise TypeError(
            f"Expected network_factory to be a function that builds the network but got "
            f"{type(network_factory).__name__}; add `_partial_: true` beside its `_target_`."
        )
    outputs = channels_for(classes) if channels is None else channels
    network = network_factory(**({} if classes_argument is None else {classes_argument: outputs}))
    return Segmenter(network, classes, multiple)


def freeze_parts(module: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Set requires_grad=False on parameters by name, and return their names.

    Add an adapter first, so that its parameters can be frozen too. The running statistics of frozen layers still change
    in training unless `hold_statistics` is called.

    Args:
        module: the network.
        patterns: like patterns of file names ("network.encoder*", "*.bias"), for the names of parameters and modules;
            a module that matches is frozen with everything in it.

    Raises:
        ValueError: if a pattern matches nothing, or if nothing is left to train.
    """
    patterns = [patterns] if isinstance(patterns, str) else patterns
    parameters = dict(module.named_parameters())
    frozen: set[str] = set()
    for pattern in patterns:
        matched = [name for name in parameters if any(fnmatchcase(part, pattern) for part in _with_parents(name))]
        if not matched:
            raise ValueError(
                f"Expected {pattern!r} to match parameters of the network but it matches none; the network has "
                f"{', '.join(parts_of(parameters))} and what is in them."
            )
        frozen.update(matched)
    for name in frozen:
        parameters[name].requires_grad_(False)
    if frozen and not any(parameter.requires_grad for parameter in parameters.values()):
        raise ValueError(f"Expected parameters left to train but {', '.join(patterns)} freezes it all; freeze less.")
    return [name for name in parameters if name in frozen]


def hold_statistics(module: nn.Module) -> None:
    """Put the network into evaluation mode for training; call it again after every `.train()`.

    Normalisation uses its running statistics without updating them, and dropout is off. A LoRA's own dropout stays on:
    it has no effect while the adapter is still zero, so the network still starts as the reference.
    """
    for name, part in module.named_modules():
        # All modules, not only Dropout: attention and stochastic depth drop by their own mode. Gradients do not depend
        # on it.
        if "lora_dropout" not in name.split("."):
            part.training = False


def channels_for(classes: int) -> int:
    """Return the default number of logits per pixel: one for two classes (sigmoid), else one per class (softmax)."""
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 2:
        raise ValueError(
            f"Expected model.classes to be at least 2, background included, but got {classes!r}; "
            "null takes the number from the data when train.py builds the model."
        )
    return 1 if classes == 2 else classes


def parts_of(names: Iterable[str], depth: int = 2) -> list[str]:
    """Return the distinct beginnings of dotted names, for messages.

    >>> parts_of(["network.encoder.0.weight", "network.encoder.0.bias", "network.head.weight"])
    ['network.encoder', 'network.head']
    """
    return list(dict.fromkeys(".".join(name.split(".")[:depth]) for name in names))


def _pick_logits(output: object) -> Tensor:
    """Return the logits in what a network returned; of several outputs, those in the first."""
    if isinstance(output, tuple | list) and output:
        return _pick_logits(output[0])
    if isinstance(output, Mapping) and isinstance(output.get("out"), tuple | list):
        return _pick_logits(output["out"])
    return logits_in(cast(ModelOutput, output), "what the network returns")


class _SkipUpsampling(TorchFunctionMode):
    """Inside the `with`, a bilinear upsampling to `size` returns its input unchanged, and is remembered.

    That holds for nn.Upsample in a head and for F.interpolate in a forward alike. `align_corners_of` tells whether the
    network returned what it would have upsampled.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self._size = size
        self._skipped: list[tuple[Tensor, bool]] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Skip F.interpolate if it is a bilinear upsampling to the size."""
        given = dict(kwargs or {})
        if func is F.interpolate:
            call: dict[str, Any] = {"size": None, "scale_factor": None, "mode": "nearest", "align_corners": None}
            call |= dict(zip(("input", "size", "scale_factor", "mode", "align_corners"), args, strict=False)) | given
            if self._upsamples(call):
                self._skipped.append((call["input"], bool(call["align_corners"])))
                return call["input"]
        return func(*args, **given)

    @property
    def any(self) -> bool:
        """Whether any upsampling was skipped."""
        return bool(self._skipped)

    def align_corners_of(self, logits: Tensor) -> bool | None:
        """Return how the network would have upsampled `logits`; None: it does not end in an upsampling."""
        return next((align for small, align in self._skipped if small is logits), None)

    def _upsamples(self, call: Mapping[str, Any]) -> bool:
        small = call["input"]
        if call["mode"] != "bilinear" or call.get("antialias") or small.ndim != 4 or small.shape[-2:] == self._size:
            return False
        if call["size"] is not None:
            return _both(call["size"]) == self._size
        # With a factor, positions depend on it instead of on the sizes; equal only where nothing is rounded.
        factors = _both(call["scale_factor"])
        return all(side * f == whole for side, f, whole in zip(small.shape[-2:], factors, self._size, strict=True))


def _both(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list | torch.Size) else (value, value)


def _with_parents(name: str) -> list[str]:
    """Return a parameter's name and those of the modules that contain it: a.b.weight, a.b, a."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]


def _check_name(what: str, name: str, known: Iterable[str]) -> None:
    names = sorted(known)
    if name in names:
        return
    close = difflib.get_close_matches(name, names, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "choose one of these."
    raise ValueError(f"Expected {what} to be one of {', '.join(names)} but got {name!r}; {hint}")


def _check_options(factory: Callable[..., nn.Module], options: Mapping[str, object]) -> None:
    """Refuse misspelt options: smp ignores options that it does not know."""
    known = {name for name, p in inspect.signature(factory).parameters.items() if p.kind is not p.VAR_KEYWORD}
    for option in options:
        _check_name("an option of model", option, known)
