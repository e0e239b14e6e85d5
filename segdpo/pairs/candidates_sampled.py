"""Candidate masks by perturbing a network: dropout left on, the image turned, smooth noise on the logits.

The kinds of source and their options are explained in candidates.py.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from jaxtyping import Float64
from scipy import ndimage
from torch import nn

from segdpo.checks import check_choice, check_range
from segdpo.pairs.candidates_value import Candidates
from segdpo.pairs.prediction import MEAN, STD, Predict, logits_of, masks_of, predict_with
from segdpo.pairs.record import Record

# How often the image is turned by 90° to the left, and whether it is then mirrored left to right.
VIEWS = {
    "as_is": (0, False),
    "turn_90": (1, False),
    "turn_180": (2, False),
    "turn_270": (3, False),
    "flip_x": (0, True),
    "turn_90_flip_x": (1, True),
    "flip_y": (2, True),
    "turn_270_flip_x": (3, True),
}
# timm's and torchvision's stochastic depth are dropout too, but share no class with it.
STOCHASTIC_DEPTH = ("DropPath", "StochasticDepth")


def mc_dropout(
    record: Record,
    rng: np.random.Generator,
    *,
    model: nn.Module,
    count: int = 8,
    device: str = "cpu",
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
    multiple: int = 32,
    ask: Callable[[nn.Module], Predict] | None = None,
) -> Candidates:
    """Predict `count` times with the dropout layers of `model` on and everything else in eval mode.

    Gal and Ghahramani, "Dropout as a Bayesian approximation", 2016. The modes of all modules, and torch's own random
    numbers, are afterwards what they were. `ask` says how images are put to the model; left out: by `predict_with`,
    whose options the others are.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        ask = ask or partial(predict_with, device=device, mean=mean, std=std, multiple=multiple)
        predict = ask(model)
        for layer in _dropout_layers(model):
            layer.train()
        with _torch_seeded(int(rng.integers(2**63)), device):
            # One image at a time: dropout would draw the same numbers in another order in another batch.
            masks = [masks_of(logits_of(predict, record.image[None]))[0] for _ in range(count)]
    finally:
        for module, training in modes.items():
            module.training = training
    return Candidates(np.stack(masks), tuple(f"mc_dropout-{k}" for k in range(count)))


def turned_views(
    record: Record, rng: np.random.Generator, *, predict: Predict, views: Sequence[str] = tuple(VIEWS)
) -> Candidates:
    """Predict the image in each view (turned, mirrored) and turn the predictions back, pixel for pixel."""
    together = defaultdict(list)
    for view in views:
        check_choice("views", view, VIEWS)
        together[VIEWS[view][0] % 2].append(view)
    masks = {}
    for same_shape in together.values():
        images = np.stack([_turn(record.image, view) for view in same_shape])
        for view, mask in zip(same_shape, masks_of(logits_of(predict, images)), strict=True):
            masks[view] = _turn_back(mask, view)
    return Candidates(np.stack([masks[view] for view in views]), tuple(f"tta-{view}" for view in views))


def logit_noise(
    record: Record,
    rng: np.random.Generator,
    *,
    predict: Predict,
    count: int = 8,
    amplitude: float = 1.0,
    length: float = 8.0,
) -> Candidates:
    """Add smooth Gaussian noise to the logits: contours move in and out over stretches, as an annotator's do.

    `amplitude` is the noise's standard deviation in logits, `length` its correlation length in pixels. Each class has
    noise of its own. Candidate 0 is the plain prediction.
    """
    check_range("amplitude", amplitude, above=0)
    check_range("length", length, above=0)
    logits = logits_of(predict, record.image[None])
    noisy = [logits]
    for _ in range(count - 1):
        noise = np.stack([smooth_noise(rng, logits.shape[2:], length) for _ in range(logits.shape[1])])
        noisy.append(logits + amplitude * noise.astype(np.float32))
    return Candidates(masks_of(np.concatenate(noisy)), tuple(f"logit_noise-{k}" for k in range(count)))


def smooth_noise(rng: np.random.Generator, shape: Sequence[int], length: float) -> Float64[np.ndarray, "H W"]:
    """Return Gaussian noise of mean 0, variance 1 and correlation e^{−d²/2·length²} at distance d, everywhere alike."""
    sigma = length / np.sqrt(2)
    margin = int(4 * sigma + 0.5)  # as far as scipy's kernel reaches, so that no border is felt
    impulse = np.zeros(2 * margin + 1)
    impulse[margin] = 1
    power = float((ndimage.gaussian_filter1d(impulse, sigma, mode="constant") ** 2).sum())
    white = rng.standard_normal((shape[0] + 2 * margin, shape[1] + 2 * margin))
    smooth = ndimage.gaussian_filter(white, sigma, mode="constant") / power
    return np.asarray(smooth[margin : margin + shape[0], margin : margin + shape[1]])


def _dropout_layers(model: nn.Module) -> list[nn.Module]:
    layers = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.dropout._DropoutNd) or type(module).__name__ in STOCHASTIC_DEPTH
    ]
    if not layers:
        raise ValueError(
            f"Expected a model with dropout layers but {type(model).__name__} has none (calls of F.dropout cannot be "
            "found); train one with dropout, or use turned_views or logit_noise."
        )
    return layers


@contextmanager
def _torch_seeded(seed: int, device: str) -> Iterator[None]:
    on_gpu = torch.device(device).type == "cuda"
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if on_gpu else []):
        torch.manual_seed(seed)
        yield


def _turn(image: np.ndarray, view: str) -> np.ndarray:
    turns, mirrored = VIEWS[view]
    turned = np.rot90(image, turns)
    return np.ascontiguousarray(turned[:, ::-1] if mirrored else turned)


def _turn_back(mask: np.ndarray, view: str) -> np.ndarray:
    turns, mirrored = VIEWS[view]
    return np.rot90(mask[:, ::-1] if mirrored else mask, -turns)
