"""Semantic-segmentation networks of transformers, all of AutoModelForSemanticSegmentation: build and describe them."""

import copy
import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import nn

from segdpo.extras import extra_named
from segdpo.models.weights import read_tensors

TARGET = "segdpo.models.transformers_model"
# Of a configuration, but given by `num_labels`, or without influence on the network.
NOT_OPTIONS = {
    "kwargs",
    *("architectures", "dtype", "id2label", "label2id", "num_labels", "problem_type", "transformers_version"),
    *("backbone", "backbone_kwargs", "use_pretrained_backbone", "use_timm_backbone"),
    *("chunk_size_feed_forward", "is_encoder_decoder", "output_attentions", "output_hidden_states", "return_dict"),
}
# These build whatever their options name in another library.
NOT_BACKBONES = ("timm_backbone", "timm_wrapper")


def transformers_model(
    num_labels: int, *, model_type: str = "segformer", pretrained: str | None = None, **config: Any
) -> nn.Module:
    """Build a network of transformers, whose output has `.logits`, for most of them smaller than the image.

    Args:
        num_labels: number of outputs.
        model_type: transformers' name of the architecture: segformer, upernet, dpt, beit, mobilevit, …
        pretrained: a folder or a name on the hub, for configuration and weights, with a `model_type` of its own; a head
            with another number of labels is initialised randomly.
        config: options of the architecture's configuration; a `backbone_config` has its own `model_type`.

    Raises:
        ValueError: no such architecture, or it has no such option.
    """
    library = _transformers()
    known = importlib.import_module("transformers.models.auto.modeling_auto")
    names = known.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
    network: nn.Module
    if pretrained is not None:
        found = library.AutoConfig.from_pretrained(pretrained, trust_remote_code=False)
        _check_options(found.model_type, config)
        network = library.AutoModelForSemanticSegmentation.from_pretrained(
            pretrained, num_labels=num_labels, ignore_mismatched_sizes=True, trust_remote_code=False, **config
        )
        return network
    if model_type not in names:
        raise ValueError(
            f"Expected model_type to be one of {', '.join(sorted(names))} but got {model_type!r}; correct "
            "model.network_factory.model_type."
        )
    _check_options(model_type, config)
    configuration = library.CONFIG_MAPPING[model_type](num_labels=num_labels, **config)
    network = library.AutoModelForSemanticSegmentation.from_config(configuration)
    return network


def is_of_transformers(network: nn.Module) -> bool:
    """Return whether a network is one of transformers, without importing that library."""
    names = {f"{base.__module__}.{base.__qualname__}" for base in type(network).__mro__}
    return "transformers.modeling_utils.PreTrainedModel" in names


def load_transformers(path: Path, network: nn.Module) -> None:
    """Load a file that transformers wrote, in which names may differ from those of the network's modules.

    Raises:
        ValueError: if the file is damaged, or its weights do not fit.
    """
    tensors, own = read_tensors(path), cast(Any, network)
    logging = importlib.import_module("transformers.utils.logging")
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # it would print what the error below says
    try:
        # No folder: nothing but these tensors is read.
        found, said = type(own).from_pretrained(
            None, config=copy.deepcopy(own.config), state_dict=tensors, output_loading_info=True
        )
    except Exception as error:  # whatever tensors of wrong types or shapes raise
        raise ValueError(
            f"{path}: Expected the weights of this network but they cannot be loaded ({error})."
        ) from error
    finally:
        logging.set_verbosity(level)
    differing = [
        f"{len(names)} {what} ({', '.join(sorted(map(str, names))[:3])})" for what, names in said.items() if names
    ]
    if differing:
        raise ValueError(
            f"Expected {path} to hold the weights of this network but found {', '.join(differing)}; take the file that "
            "was saved with its config.json."
        )
    network.load_state_dict(found.state_dict())


def without_download(node: Any) -> Any:
    """Return a yaml's content in which the options of every `pretrained` architecture are written out.

    What is built from it has the same architecture, and random weights. The configuration is read from its folder or
    the hub's cache on this machine; where it is not there, the node stays as it is.
    """
    if isinstance(node, list | tuple):
        return [without_download(part) for part in node]
    if not isinstance(node, Mapping):
        return node
    if node.get("_target_") == TARGET and node.get("pretrained"):
        library = _transformers()
        given = {key: value for key, value in node.items() if key not in ("pretrained", "model_type")}
        try:
            found = library.AutoConfig.from_pretrained(
                node["pretrained"], local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError):
            return dict(node)
        return {**_options_of(found.to_diff_dict()), **given}
    return {key: without_download(value) for key, value in node.items()}


def _transformers() -> Any:
    with extra_named():
        # Slow to import.
        import transformers

    return transformers


def _check_options(model_type: str, options: Mapping[str, Any]) -> None:
    """Refuse options that a configuration would keep or follow though it does not declare them, such as `backbone`."""
    known = _known_options(model_type)
    wrong = sorted(set(options) - known)
    if wrong:
        raise ValueError(
            f"Expected options of transformers' {model_type} ({', '.join(sorted(known))}) but got {', '.join(wrong)}; "
            "correct the name in model.network_factory."
        )
    backbones = importlib.import_module("transformers.models.auto.modeling_auto").MODEL_FOR_BACKBONE_MAPPING_NAMES
    for key, value in options.items():
        if isinstance(value, Mapping):
            inner = value.get("model_type")
            if not isinstance(inner, str) or inner not in backbones or inner in NOT_BACKBONES:
                raise ValueError(
                    f"Expected {key}.model_type to be one of {', '.join(sorted(set(backbones) - {*NOT_BACKBONES}))} "
                    f"but got {inner!r}; correct it in model.network_factory."
                )
            _check_options(inner, {name: one for name, one in value.items() if name != "model_type"})


def _known_options(model_type: str) -> set[str]:
    parameters = inspect.signature(_transformers().CONFIG_MAPPING[model_type]).parameters
    names = {name for name in parameters if not name.startswith("_")} - NOT_OPTIONS
    return names | {name for name in ("out_features", "out_indices") if f"_{name}" in parameters}


def _options_of(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `transformers_model` in a configuration, those of its backbone included."""
    known = _known_options(found["model_type"])
    options = {
        key: _options_of(value) if isinstance(value, Mapping) else value for key, value in found.items() if key in known
    }
    return {"model_type": found["model_type"], **options}
