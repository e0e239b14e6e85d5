"""Every pipeline of conf/transforms can be expressed without albumentations: with torchvision and what stands here.

albumentations 2.0.8 is the last release under the MIT licence. What replaces a step draws other random numbers; it
moves image and masks alike, and 255 marks what comes from outside the image.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F2
from toy_records import coordinates, encode

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(path.stem for path in (CONF / "transforms").glob("*.yaml"))
FILL = {tv_tensors.Image: 0, tv_tensors.Mask: 255}


def fill_of(part):
    return 255 if isinstance(part, tv_tensors.Mask) else 0


class Turned(v2.Transform):
    """One of the eight symmetries of a square."""

    def __init__(self, turns, flipped):
        super().__init__()
        self.turns, self.flipped = turns, flipped

    def transform(self, inpt, params):
        turned = torch.rot90(inpt.as_subclass(torch.Tensor), self.turns, (-2, -1))
        return tv_tensors.wrap(turned.flip(-1) if self.flipped else turned, like=inpt)


class Resized(v2.Transform):
    """Bilinear for images; each pixel of a mask is that under its centre, which torchvision's own nearest misses."""

    def __init__(self, height, width):
        super().__init__()
        self.size = height, width

    def transform(self, inpt, params):
        if isinstance(inpt, tv_tensors.Image):
            return F2.resize(inpt, self.size, antialias=False)
        plain = F.interpolate(inpt.as_subclass(torch.Tensor)[None], self.size, mode="nearest-exact")[0]
        return tv_tensors.wrap(plain, like=inpt)


class Padded(v2.Transform):
    """Padding at the right and below, to a multiple, or at all sides of what is smaller than a crop."""

    def __init__(self, multiple):
        super().__init__()
        self.multiple = multiple

    def make_params(self, flat_inputs):
        height, width = F2.get_size(flat_inputs[0])
        return {"padding": [0, 0, -width % self.multiple, -height % self.multiple]}

    def transform(self, inpt, params):
        return F2.pad(inpt, params["padding"], fill=fill_of(inpt))


class ResizedCrop(v2.RandomResizedCrop):
    def transform(self, inpt, params):
        cut = F2.crop(inpt, params["top"], params["left"], params["height"], params["width"])
        return Resized(*self.size).transform(cut, {})


class ObjectCrop(v2.Transform):
    """A crop that has a pixel of a mask's object in it, for the given share; what is missing of its size is padded."""

    def __init__(self, size, objects):
        super().__init__()
        self.size, self.objects = size, objects

    def make_params(self, flat_inputs):
        masks = next(part for part in flat_inputs if isinstance(part, tv_tensors.Mask))
        places = torch.nonzero((masks > 0).any(0)) if torch.rand(()) < self.objects else ()
        if not len(places):
            places = torch.nonzero(torch.ones(masks.shape[1:]))
        place = places[torch.randint(len(places), ())]
        starts = []
        for at, length in zip(place.tolist(), masks.shape[1:], strict=True):
            start = at - int(torch.randint(self.size, ()))
            starts.append(min(max(0, start), max(0, length - self.size)))
        return {"start": starts, "short": [max(0, self.size - length) for length in masks.shape[:0:-1]]}

    def transform(self, inpt, params):
        return F2.crop(
            F2.pad(inpt, [0, 0, *params["short"]], fill=fill_of(inpt)), *params["start"], self.size, self.size
        )


class GridDistortion(v2.Transform):
    """The cells of a grid of 5 × 5 get other widths and heights, each by up to a fifth."""

    def __init__(self, distort_limit):
        super().__init__()
        self.limit = distort_limit

    def make_params(self, flat_inputs):
        shifts = []
        for length in F2.get_size(flat_inputs[0])[::-1]:
            steps = 1 + torch.empty(5).uniform_(*self.limit).numpy()
            knots = np.concatenate([[0], np.cumsum(steps)]) / steps.sum()
            at = np.linspace(0, 1, length)
            shifts.append(torch.from_numpy(2 * (np.interp(at, np.linspace(0, 1, 6), knots) - at)).float())
        across, down = torch.meshgrid(*shifts, indexing="xy")
        return {"displacement": torch.stack([across, down], -1)[None]}

    def transform(self, inpt, params):
        return F2.elastic(inpt, params["displacement"], fill=fill_of(inpt))


class GaussNoise(v2.Transform):
    def __init__(self, std_range):
        super().__init__()
        self.range = std_range

    def transform(self, inpt, params):
        if isinstance(inpt, tv_tensors.Mask):
            return inpt
        noise = 255 * torch.empty(()).uniform_(*self.range) * torch.randn(inpt.shape)
        return tv_tensors.wrap((inpt + noise).round().clamp(0, 255).byte(), like=inpt)


def affine(scale, translate_percent, rotate):
    return v2.RandomAffine(rotate, [max(translate_percent)] * 2, scale, fill=FILL)


def pad_if_needed(min_height, min_width, pad_height_divisor, pad_width_divisor, position):
    assert (min_height, min_width, position) == (None, None, "top_left")
    assert pad_height_divisor == pad_width_divisor
    return Padded(pad_height_divisor)


STEPS = {
    "Affine": affine,
    "ColorJitter": v2.ColorJitter,
    "D4": lambda: v2.RandomChoice([Turned(turns, flipped) for turns in range(4) for flipped in (False, True)]),
    "ElasticTransform": lambda alpha, sigma: v2.ElasticTransform(float(alpha), float(sigma), fill=FILL),
    "GaussNoise": GaussNoise,
    "GridDistortion": GridDistortion,
    "HorizontalFlip": lambda: v2.RandomHorizontalFlip(p=1),
    "ObjectCrop": ObjectCrop,
    "OneOf": lambda transforms: v2.RandomChoice([step_of(node) for node in transforms]),
    "PadIfNeeded": pad_if_needed,
    "RandomBrightnessContrast": lambda: v2.ColorJitter(brightness=0.2, contrast=0.2),
    "RandomResizedCrop": ResizedCrop,
    "Resize": Resized,
}


def step_of(node):
    options = {key: value for key, value in node.items() if key not in ("_target_", "p")}
    return v2.RandomApply([STEPS[node["_target_"].rpartition(".")[2]](**options)], node.get("p", 1))


def show(pipeline, image, masks, seed=0):
    torch.manual_seed(seed)
    image, masks = v2.Compose(pipeline)(
        tv_tensors.Image(np.ascontiguousarray(image.transpose(2, 0, 1))), tv_tensors.Mask(masks)
    )
    return image.numpy().transpose(1, 2, 0), masks.numpy()


def pipelines_of(name):
    """Return the replaced steps and our own pipeline of `train` and `eval`."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(overrides=[f"+transforms={name}"])
    ours = instantiate(config.transforms)
    nodes = OmegaConf.to_container(config.transforms, resolve=True)
    return {part: ([step_of(node) for node in nodes[part]["steps"]], ours[part]) for part in ("train", "eval")}


@pytest.mark.untraced
@pytest.mark.parametrize("name", NAMES)
def test_every_pipeline_has_a_form_without_albumentations(name):
    image, masks = coordinates(64, 96, 5)
    for part, (steps, ours) in pipelines_of(name).items():
        expected = ours(image, masks, np.random.default_rng(0))
        for seed in range(4):
            seen, moved = show(steps, image, masks, seed)
            valid = moved[0] != 255
            assert moved.shape[0] == 5
            assert moved.shape[1:] == seen.shape[:2]
            assert sorted(moved.shape[1:]) == sorted(expected.masks.shape[1:])
            for k, mask in enumerate(moved[2:]):
                np.testing.assert_array_equal(mask[valid], encode(*moved[:2], k)[valid])
            assert (moved[:, ~valid] == 255).all()
        if part == "eval":
            np.testing.assert_array_equal(moved, expected.masks)
            grey = 255 * (expected.image.transpose(1, 2, 0) * np.float32([0.229, 0.224, 0.225]) + [0.485, 0.456, 0.406])
            assert np.abs(seen - grey)[valid].max() <= 1.01


def test_the_eight_symmetries_are_the_same():
    image, masks = coordinates(32, 32, 3)
    steps, ours = pipelines_of("flips")["train"]
    expected = {ours(image, masks, np.random.default_rng(seed)).masks.tobytes() for seed in range(100)}
    assert len(expected) == 8
    assert {show(steps, image, masks, seed)[1].tobytes() for seed in range(100)} == expected
