"""Sources of candidates: masks of the data, of a network, or of a function, and mixtures of sources.

A source is a function `(record, rng) -> Candidates` whose options are bound by `functools.partial`. A source that asks
a network takes it as the keyword `network`; `with_network` binds it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float64
from scipy import ndimage
from scipy.special import log_softmax, logit
from torch import nn

from segdpo.checks import check_choice, check_range
from segdpo.data import Candidates, Image, MaskSource, Record
from segdpo.masks import Masks
from segdpo.preferences.network import Network, masks_of, with_network
from segdpo.scores import sample

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


def existing(record: Record, rng: np.random.Generator, *, start: str = "") -> Candidates:
    """Return the masks that the record came with, those whose name starts with `start`."""
    kept = [number for number, name in enumerate(record.mask_names) if name.startswith(start)]
    return Candidates(record.masks[kept], tuple(record.mask_names[number] for number in kept))


def from_function(
    record: Record, rng: np.random.Generator, *, function: Callable[[Image, np.random.Generator], Masks]
) -> Candidates:
    """Return the masks of class ids [K, H, W] that `function(image, rng)` makes."""
    masks = np.asarray(function(record.image, rng))
    if masks.ndim != 3 or masks.shape[1:] != record.image.shape[:2]:
        raise ValueError(
            f"Expected the function to return masks [K, {record.image.shape[0]}, {record.image.shape[1]}] "
            f"for record {record.id!r} but got shape {masks.shape}."
        )
    if masks.dtype.kind not in "bui" or (masks.size and not 0 <= masks.min() <= masks.max() <= 255):
        raise ValueError(
            f"Expected integer class ids from 0 to 254, or 255 for ignore, for record {record.id!r} "
            f"but got {masks.dtype} in {masks.min()} … {masks.max()}; threshold probabilities or take their argmax."
        )
    return Candidates(masks.astype(np.uint8), tuple(f"function-{k}" for k in range(len(masks))))


def thresholds(
    record: Record,
    rng: np.random.Generator,
    *,
    network: Network,
    probabilities: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
) -> Candidates:
    """Threshold the probability of the object at several values.

    With more than two classes, class 0 (the background) is weighed against the likeliest other class k: a pixel is of
    class k where p_k / (p_0 + p_k) is above the threshold, and background elsewhere; ½ gives the plain prediction.
    """
    for probability in probabilities:
        check_range("probabilities", probability, above=0, below=1)
    logits = network.predict(record.image[None])[0]
    background, others = (np.float32(0), logits) if len(logits) == 1 else (logits[0], logits[1:])
    likeliest, margin = 1 + others.argmax(0), others.max(0) - background
    masks = np.stack([np.where(margin > logit(probability), likeliest, 0) for probability in probabilities])
    return Candidates(masks.astype(np.uint8), tuple(f"thresholds-{probability:g}" for probability in probabilities))


def class_biases(
    record: Record,
    rng: np.random.Generator,
    *,
    network: Network,
    count: int = 8,
    bias: float = 1.0,
    temperature: float = 0.3,
) -> Candidates:
    """Favour some classes over others: argmax_c (log p_c / T_c + b_c).

    For each candidate, b_c ~ N(0, bias²) and ln T_c ~ N(0, temperature²) are drawn anew. Candidate 0 is the plain
    prediction. A binary network counts as two classes, log σ(−z) and log σ(z).
    """
    check_range("bias", bias, least=0)
    check_range("temperature", temperature, least=0)
    logits = network.predict(record.image[None])[0]
    if len(logits) == 1:
        logits = np.concatenate([np.zeros_like(logits), logits])
    log_p = log_softmax(logits.astype(np.float64), axis=0)
    masks = [logits.argmax(0)]
    for _ in range(count - 1):
        scale = np.exp(temperature * rng.standard_normal(len(logits)))
        shift = bias * rng.standard_normal(len(logits))
        masks.append((log_p / scale[:, None, None] + shift[:, None, None]).argmax(0))
    return Candidates(np.stack(masks).astype(np.uint8), tuple(f"class_biases-{k}" for k in range(count)))


def samples(
    record: Record,
    rng: np.random.Generator,
    *,
    network: Network,
    count: int = 8,
    temperature: float = 1.0,
    smoothness: float = 0.0,
) -> Candidates:
    """Draw `count` masks whose pixels have the probabilities softmax(z / temperature), or σ(z / temperature).

    `smoothness` is the standard deviation, in pixels, of the Gaussian that the noise is smoothed with: neighbouring
    pixels then err together, as contours do. At 0 each pixel is drawn independently, and at temperature 1 the masks are
    samples of the policy.
    """
    check_range("count", count, least=1)
    logits = torch.tensor(network.predict(record.image[None]))
    generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
    masks = sample(logits, count, temperature=temperature, smoothness=smoothness, generator=generator)
    return Candidates(masks.numpy(), tuple(f"samples-{k}" for k in range(count)))


def mc_dropout(record: Record, rng: np.random.Generator, *, network: Network, count: int = 8) -> Candidates:
    """Predict `count` times with the dropout layers of the network on and everything else in eval mode.

    Gal and Ghahramani, "Dropout as a Bayesian approximation", 2016. The modes of all modules, and the state of torch's
    random numbers, are restored afterwards.
    """
    modes = {module: module.training for module in network.model.modules()}
    try:
        network.model.eval()
        for layer in _dropout_layers(network.model):
            layer.train()
        with _torch_seeded(int(rng.integers(2**63)), network.device):
            # One image at a time: in a batch, dropout would draw other numbers for each.
            masks = [masks_of(network.predict(record.image[None]))[0] for _ in range(count)]
    finally:
        for module, training in modes.items():
            module.training = training
    return Candidates(np.stack(masks), tuple(f"mc_dropout-{k}" for k in range(count)))


def turned_views(
    record: Record, rng: np.random.Generator, *, network: Network, views: Sequence[str] = tuple(VIEWS)
) -> Candidates:
    """Predict the image in each view (turned, mirrored) and turn the predictions back, pixel for pixel."""
    together = defaultdict(list)
    for view in views:
        check_choice("views", view, VIEWS)
        together[VIEWS[view][0] % 2].append(view)
    masks = {}
    for same_shape in together.values():
        images = np.stack([_turn(record.image, view) for view in same_shape])
        for view, mask in zip(same_shape, masks_of(network.predict(images)), strict=True):
            masks[view] = _turn_back(mask, view)
    return Candidates(np.stack([masks[view] for view in views]), tuple(f"tta-{view}" for view in views))


def logit_noise(
    record: Record,
    rng: np.random.Generator,
    *,
    network: Network,
    count: int = 8,
    amplitude: float = 1.0,
    length: float = 8.0,
) -> Candidates:
    """Add smooth Gaussian noise to the logits, so that contours move in and out in stretches, as an annotator's do.

    `amplitude` is the noise's standard deviation in logits, `length` its correlation length in pixels. Each class has
    noise of its own. Candidate 0 is the plain prediction.
    """
    check_range("amplitude", amplitude, above=0)
    check_range("length", length, above=0)
    logits = network.predict(record.image[None])
    noisy = [logits]
    for _ in range(count - 1):
        noise = np.stack([smooth_noise(rng, logits.shape[2:], length) for _ in range(logits.shape[1])])
        noisy.append(logits + amplitude * noise.astype(np.float32))
    return Candidates(masks_of(np.concatenate(noisy)), tuple(f"logit_noise-{k}" for k in range(count)))


def checkpoints(record: Record, rng: np.random.Generator, *, networks: Mapping[str, Network]) -> Candidates:
    """Return the prediction of each of several named networks, such as checkpoints of one run."""
    masks = [masks_of(network.predict(record.image[None]))[0] for network in networks.values()]
    return Candidates(np.stack(masks), tuple(f"checkpoints-{name}" for name in networks))


def mixture(
    record: Record,
    rng: np.random.Generator,
    *,
    sources: Mapping[str, MaskSource],
    count: int,
    weights: Mapping[str, float] | None = None,
    network: Network | None = None,
) -> Candidates:
    """Draw `count` masks of an image from several sources, all if there are fewer.

    The first mask drawn is of a source with probability weight / sum of weights (None: 1 each), however many masks it
    offers; the others are drawn without replacement. A source of weight 0 is not called. Masks are named
    "source-variant", the source by its key in `sources`. `network` is passed to the sources that ask one.
    """
    shares = _shares(sources, weights)
    # A generator each: what one source draws does not depend on the other sources.
    generators = dict(zip(sources, rng.spawn(len(sources)), strict=True))
    called = [name for name, share in shares.items() if share > 0]
    offered = {name: with_network(sources[name], network)(record, generators[name]) for name in called}
    offered = {name: candidates for name, candidates in offered.items() if len(candidates.masks)}
    if not offered:
        return Candidates(np.zeros((0, *record.image.shape[:2]), np.uint8), ())
    odds = np.concatenate([np.full(len(c.masks), shares[name] / len(c.masks)) for name, c in offered.items()])
    drawn = np.sort(rng.choice(len(odds), min(count, len(odds)), replace=False, p=odds / odds.sum()))
    names = [_named(source, name) for source, candidates in offered.items() for name in candidates.names]
    masks = np.concatenate([candidates.masks for candidates in offered.values()])
    return Candidates(masks[drawn], tuple(names[number] for number in drawn))


def distinct(candidates: Candidates) -> Candidates:
    """Drop every mask that equals an earlier one pixel for pixel."""
    kept = first_of_each(candidates.masks)
    return Candidates(candidates.masks[kept], tuple(candidates.names[number] for number in kept))


def first_of_each(masks: Masks) -> list[int]:
    """Return the numbers of the masks that no earlier mask equals."""
    seen: dict[bytes, int] = {}
    for number, mask in enumerate(masks):
        seen.setdefault(mask.tobytes(), number)
    return list(seen.values())


def smooth_noise(rng: np.random.Generator, shape: Sequence[int], length: float) -> Float64[np.ndarray, "H W"]:
    """Return Gaussian noise of mean 0, variance 1 and correlation exp(−d²/2·length²) at distance d."""
    sigma = length / np.sqrt(2)
    margin = int(4 * sigma + 0.5)  # the reach of scipy's kernel, so that the border has no effect
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
            f"Expected a network with dropout layers but {type(model).__name__} has none (calls of F.dropout cannot be "
            "found); train one with dropout (model=fpn), or take candidates=tta or candidates=logit_noise."
        )
    return layers


@contextmanager
def _torch_seeded(seed: int, device: torch.device | str) -> Iterator[None]:
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


def _shares(sources: Mapping[str, MaskSource], weights: Mapping[str, float] | None) -> dict[str, float]:
    if weights is None:
        return dict.fromkeys(sources, 1.0)
    if set(weights) != set(sources):
        raise ValueError(
            f"Expected a weight for each source ({', '.join(sources)}) but got weights for {', '.join(weights)}."
        )
    for name, weight in weights.items():
        check_range(f"weights.{name}", weight, least=0)
    return {name: float(weights[name]) for name in sources}


def _named(source: str, name: str) -> str:
    _, dash, variant = name.partition("-")
    return f"{source}-{variant if dash else name}"
