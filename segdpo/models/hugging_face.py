"""Segmentation networks of Hugging Face, built from a config; nothing is downloaded unless `pretrained` names it."""

import importlib
import inspect
from typing import Any

from torch import nn


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
