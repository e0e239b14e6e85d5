"""Load a trained network, with how it is shown images, from a run, a file or the Hugging Face hub."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from torch import nn

from segdpo.data import MaskSource, Preparation, read_preparation, unknown_preparation
from segdpo.models import Segmenter, weights_path
from segdpo.preferences import Network, checkpoints


class Description(TypedDict):
    """What a file of weights says of its network.

    Attributes:
        model: what builds the network.
        adapter: None: it is merged.
        classes: names of the classes.
        mean: that images are normalised with; `preparation` has it too.
        std: like `mean`.
        preparation: how images become the network's input.
        training: what the policy of a run was trained from, and its figures.
    """

    model: Any
    adapter: Any
    classes: list[str]
    mean: list[float]
    std: list[float]
    preparation: Preparation
    training: NotRequired[dict[str, Any]]


def open_segmenter(path: str | Path, *, trusted: Sequence[str] = ()) -> tuple[Segmenter, Description]:
    """Return a trained network in evaluation mode, and its description.

    Args:
        path: see `Segmenter.from_pretrained`.
        trusted: packages whose networks and transforms the description may name; see there.

    Returns:
        The network, with an adapter merged, and what the file says of it. Files of earlier versions do not say how
        images were prepared: their `preparation` has mean and std alone, and node=None.

    Raises:
        ValueError: if the file is damaged, has no description, or names something that is not trusted.
        FileNotFoundError: there is no such path, and no such repository on the hub.
    """
    path = weights_path(path)
    segmenter = Segmenter.from_pretrained(path, trusted=trusted)
    description = cast(Mapping[str, Any], segmenter.description)
    preparation = _preparation_of(description, segmenter, path, trusted)
    return segmenter, cast(Description, {**description, "preparation": preparation})


def open_network(path: str | Path, *, device: str = "cpu", trusted: Sequence[str] = ()) -> tuple[Network, Description]:
    """Return a trained network that predicts images as in its training, and its description; see `open_segmenter`."""
    segmenter, description = open_segmenter(path, trusted=trusted)
    return Network(segmenter, description["preparation"], device), description


def checkpoint_candidates(
    weights: Mapping[str, str | Path], *, device: str = "cpu", trusted: Sequence[str] = ()
) -> MaskSource:
    """Return candidates that are the predictions of several trained networks: name → path as in `open_segmenter`."""
    networks = {name: open_network(path, device=device, trusted=trusted)[0] for name, path in weights.items()}
    return partial(checkpoints, networks=networks)


def channels_of(network: nn.Module) -> int:
    """Return the number of channels of the network's first convolution, or 3 if it has none."""
    return next((part.in_channels for part in network.modules() if isinstance(part, nn.Conv2d)), 3)


def _preparation_of(
    description: Mapping[str, Any], network: nn.Module, path: Path, trusted: Sequence[str]
) -> Preparation:
    """Return the preparation that the description holds; images are decoded to as many channels as the network has."""
    channels = channels_of(network)
    known = channels if channels in (1, 3) else None
    if description.get("preparation") is None:
        return unknown_preparation(description["mean"], description["std"], known)
    found = read_preparation(description["preparation"], path, trusted=trusted)
    return found if found.channels is not None else replace(found, channels=known)
