"""Geometry: masks that encode their own coordinates tell where every pixel came from."""

import pickle
import subprocess
import sys

import albumentations as A
import cv2
import numpy as np
import pytest
from toy_records import coordinates, encode

from segdpo.data.transforms import ObjectCrop, Pipeline, coordinate_masks, image_box, init_worker, normalise
from segdpo.files import DataError
from segdpo.models import IMAGENET_MEAN, IMAGENET_STD

H, W = 96, 128
PLAIN = {"mean": (0.0,), "std": (1 / 255,)}  # leaves the image's values as they are
GEOMETRIES = {
    "affine": A.Affine(scale=(0.5, 1.5), rotate=(-40, 40), translate_percent=0.2, shear=(-10, 10), p=1),
    "affine, mirrored border": A.Affine(scale=(0.5, 1.5), rotate=(-40, 40), border_mode=cv2.BORDER_REFLECT_101, p=1),
    "rotate": A.Rotate(limit=45, border_mode=cv2.BORDER_CONSTANT, p=1),
    "perspective": A.Perspective(scale=(0.1, 0.2), p=1),
    "elastic": A.ElasticTransform(alpha=40, sigma=8, p=1),
    "grid distortion": A.GridDistortion(p=1),
    "optical distortion": A.OpticalDistortion(p=1),
    "grid elastic": A.GridElasticDeform((4, 4), 10, p=1),
    "thin plate spline": A.ThinPlateSpline(p=1),
    "pad": A.PadIfNeeded(min_height=160, min_width=200),
    "crop": A.RandomCrop(64, 64),
    "crop, padded": A.RandomCrop(120, 120, pad_if_needed=True),
    "crop with an object": ObjectCrop(64),
    "crop, resized": A.RandomResizedCrop(size=(64, 64)),
    "crop, enlarged": A.RandomResizedCrop(size=(200, 200)),
    "crop and pad": A.CropAndPad(percent=(-0.2, 0.2)),
    "resize": A.Resize(56, 75),
    "resize to a quarter": A.Resize(24, 32),
    "enlarge": A.Resize(220, 294),
    "shortest side": A.SmallestMaxSize(64),
    "longest side": A.LongestMaxSize(64),
    "scale": A.RandomScale((-0.5, 0.5), p=1),
    "D4": A.D4(p=1),
    "transpose": A.Transpose(p=1),
    "one of": A.OneOf([A.GridDistortion(), A.Affine(rotate=(10, 20))], p=1),
}


def look(steps, masks, seed=0, **options):
    image, stack = coordinates(H, W, masks)
    return Pipeline(steps, **PLAIN, **options)(image, stack, np.random.default_rng(seed))


@pytest.mark.parametrize("masks", [2, 3, 4, 7, 9, 32])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_every_mask_takes_the_same_way(name, masks):
    view = look([GEOMETRIES[name]], masks, seed=masks)
    inside, (x, y) = view.valid, view.masks[:2]
    assert view.masks.shape == (masks, *view.valid.shape) == (masks, *view.image.shape[1:])
    for k, mask in enumerate(view.masks[2:]):
        np.testing.assert_array_equal(mask[inside], encode(x, y, k)[inside])
    # What comes from outside is 255 in every mask, not the background of all but the first.
    assert (view.masks[:, ~inside] == 255).all()


@pytest.mark.parametrize(
    "name", sorted(set(GEOMETRIES) - {"elastic", "grid elastic", "grid distortion", "optical distortion"})
)
def test_image_and_masks_stay_on_each_other(name):
    # Linear in the image, nearest in the masks: half a source pixel apart on average where every second pixel is
    # dropped. cv2's INTER_NEAREST would give 1.5 at a quarter of the size, and .85 at 1/1.7.
    apart = []
    for seed in range(4):
        view = look([GEOMETRIES[name]], masks=2, seed=seed)
        inside = cv2.erode(view.valid.astype(np.uint8), np.ones((5, 5))).astype(bool)
        inside[[0, 1, -2, -1]] = inside[:, [0, 1, -2, -1]] = False
        apart.append((view.masks[:2].astype(float) - view.image[:2] / 2)[:, inside])
    apart = np.concatenate(apart, axis=1)
    assert apart.size
    assert np.abs(apart.mean(axis=1)).max() <= 0.5
    assert np.abs(apart).max() <= (5 if name in ("one of", "thin plate spline") else 1.01)


def test_flips_are_exact():
    view = look([A.HorizontalFlip(p=1)], masks=3)
    image, masks = coordinates(H, W, 3)
    np.testing.assert_array_equal(view.masks, masks[:, :, ::-1])
    np.testing.assert_allclose(view.image, image[:, ::-1].transpose(2, 0, 1), atol=1e-4)
    assert view.valid.all()


def test_pad_fills_the_right_and_the_bottom_with_ignore():
    pad = A.PadIfNeeded(None, None, pad_height_divisor=100, pad_width_divisor=100, position="top_left")
    view = look([pad], masks=3)
    assert view.valid.shape == (100, 200)
    assert view.valid[:H, :W].all()
    assert view.valid.sum() == H * W
    np.testing.assert_array_equal(view.masks[:, :H, :W], coordinates(H, W, 3)[1])


def test_ignore_stays_ignore_and_no_class_is_invented():
    rng = np.random.default_rng(0)
    masks = rng.choice(np.array([0, 7, 255], np.uint8), (5, 64, 64))
    steps = [A.Affine(scale=(0.7, 1.4), rotate=(-30, 30), p=1), A.RandomResizedCrop(size=(48, 48))]
    for seed in range(5):
        view = Pipeline(steps)(np.zeros((64, 64, 3), np.uint8), masks, np.random.default_rng(seed))
        assert set(np.unique(view.masks)) <= {0, 7, 255}
        assert set(np.unique(view.masks[:, view.valid])) == {0, 7, 255}


def test_photometrics_leave_the_masks_alone():
    steps = [A.RandomBrightnessContrast(p=1), A.GaussNoise(p=1), A.ColorJitter(p=1), A.CoarseDropout(p=1)]
    image, masks = coordinates(H, W, 4)
    view = Pipeline(steps, **PLAIN)(image, masks, np.random.default_rng(0))
    np.testing.assert_array_equal(view.masks, masks)
    assert view.valid.all()
    assert np.abs(view.image - image.transpose(2, 0, 1)).mean() > 1


def test_equal_generators_give_equal_views_whatever_came_before():
    steps = [A.D4(p=1), A.Affine(rotate=(-40, 40), p=0.5), A.ElasticTransform(p=0.5), A.GaussNoise(p=1)]
    image, masks = coordinates(H, W, 4)
    one, other = Pipeline(steps), Pipeline(steps)
    first = [one(image, masks, np.random.default_rng(seed)) for seed in range(6)]
    for seed in reversed(range(6)):
        again = other(image, masks, np.random.default_rng(seed))
        np.testing.assert_array_equal(again.image, first[seed].image)
        np.testing.assert_array_equal(again.masks, first[seed].masks)
    assert len({view.image.tobytes() for view in first}) == 6


def test_steps_do_not_share_their_luck():
    # Compose.set_random_seed starts every step at the same number, and both flips would always come together.
    pipeline = Pipeline([A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)])
    image, masks = coordinates(8, 8, 2)
    corners = [pipeline(image, masks, np.random.default_rng(seed)).masks[:, 0, 0] for seed in range(200)]
    counts = np.unique(np.array(corners) > 0, axis=0, return_counts=True)[1]
    assert len(counts) == 4
    assert counts.min() > 25


@pytest.mark.parametrize("channels", [1, 3])
def test_normalisation(channels):
    image = np.array([[[0] * channels, [255] * channels]], np.uint8)
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.5,), (0.25,))
    view = Pipeline(mean=mean, std=std)(image, np.zeros((1, 1, 2), np.uint8), np.random.default_rng(0))
    for channel in range(channels):
        expected = [(value - mean[channel]) / std[channel] for value in (0.0, 1.0)]
        np.testing.assert_allclose(view.image[channel, 0], expected, rtol=1e-5)
    assert view.image.flags.c_contiguous
    assert view.image.dtype == np.float32


def test_no_masks_at_all():
    view = Pipeline([A.Resize(4, 4)])(
        np.zeros((8, 8, 3), np.uint8), np.zeros((0, 8, 8), np.uint8), np.random.default_rng()
    )
    assert view.masks.shape == (0, 4, 4)


def test_what_pipeline_does_itself_is_refused():
    with pytest.raises(TypeError, match="Normalize"):
        look([A.Normalize()], masks=2)


def test_grey_image_under_rgb_constants_names_the_fix():
    with pytest.raises(ValueError, match=r"3 channels.*got 1.*mean and std"):
        Pipeline()(np.zeros((8, 8, 1), np.uint8), np.zeros((1, 8, 8), np.uint8), np.random.default_rng())


@pytest.mark.parametrize(("mean", "std"), [((0.5,), (0.2, 0.2, 0.2)), ((0.5, 0.5, 0.5), (0.2,)), ((0.5, 0.5), (0.2,))])
def test_mean_and_std_have_one_value_or_one_a_channel(mean, std):
    with pytest.raises(ValueError, match=rf"{max(len(mean), len(std))} channels.*got 1.*mean and std"):
        normalise(np.zeros((2, 2, 1), np.uint8), mean, std)
    grey = normalise(np.full((2, 2, 3), 51, np.uint8), (0.1,), (0.1, 0.2, 0.5))
    np.testing.assert_allclose(grey[:, 0, 0], [1, 0.5, 0.2], rtol=1e-6)


def test_importing_albumentations_asks_no_server_for_a_newer_one():
    code = (
        "import os, sys; os.environ.pop('NO_ALBUMENTATIONS_UPDATE', None); asked = []; "
        "sys.addaudithook(lambda event, args: asked.append(args[0]) if event == 'urllib.Request' else None); "
        "import segdpo.data.transforms; print(asked)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_worker_runs_cv2_on_one_thread():
    before = cv2.getNumThreads()
    init_worker(0)
    assert cv2.getNumThreads() == 1
    cv2.setNumThreads(before)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_grey_images_keep_their_channel(name):
    image, masks = coordinates(H, W, 3)
    view = Pipeline([GEOMETRIES[name]], mean=(0.5,), std=(0.5,))(image[..., :1], masks, np.random.default_rng(0))
    assert view.image.shape == (1, *view.valid.shape)


def test_a_pipeline_reaches_workers_that_are_started_anew():
    pipeline = Pipeline([A.D4(p=1), A.ElasticTransform(p=1), A.OneOf([A.GaussNoise(), A.Blur()], p=1)])
    views = [
        each(*coordinates(H, W, 3), np.random.default_rng(3))
        for each in (pipeline, pickle.loads(pickle.dumps(pipeline)))
    ]
    np.testing.assert_array_equal(views[0].image, views[1].image)
    np.testing.assert_array_equal(views[0].masks, views[1].masks)


RNG = np.random.default_rng(0)
PADDED = A.PadIfNeeded(
    min_height=None, min_width=None, pad_height_divisor=32, pad_width_divisor=32, position="top_left"
)


def view_of(size, *steps):
    return Pipeline(list(steps))(RNG.integers(0, 256, (*size, 3), dtype=np.uint8), coordinate_masks(size), RNG)


def test_coordinate_masks_hold_rows_and_columns():
    masks = coordinate_masks((600, 3)).astype(int)
    assert (251 * masks[0] + masks[1])[:, 1].tolist() == list(range(600))
    assert (251 * masks[2] + masks[3])[5].tolist() == [0, 1, 2]
    assert masks.max() < 255


@pytest.mark.parametrize("size", [(20, 31), (64, 64), (100, 333), (700, 40)])
@pytest.mark.parametrize(
    "steps",
    [
        [],
        [PADDED],
        [A.Resize(48, 80)],
        [A.LongestMaxSize(64), A.PadIfNeeded(96, 96, position="center")],
    ],
    ids=["as it is", "filled up", "resized", "both"],
)
def test_the_box_is_where_the_image_is(size, steps):
    view = view_of(size, *steps)
    rows, columns = image_box("a", view.masks, view.valid, size)
    inside = np.zeros(view.valid.shape, bool)
    inside[rows, columns] = True
    assert (inside == view.valid).all()


@pytest.mark.parametrize(
    "step",
    [
        A.HorizontalFlip(p=1.0),
        A.Transpose(p=1.0),
        A.CenterCrop(60, 64),
        A.Rotate((20, 20), p=1.0),
        A.ElasticTransform(alpha=80, sigma=6, p=1.0),
        A.Affine(translate_px=(3, 3), p=1.0),
    ],
    ids=lambda step: type(step).__name__,
)
def test_a_view_that_shows_less_than_the_image_or_another_is_refused(step):
    view = view_of((64, 64), step)
    with pytest.raises(DataError, match=r"photo: .*measured_at=view"):
        image_box("photo", view.masks, view.valid, (64, 64))


def crop_at(seed, objects, shape=(60, 90), size=20, share=1.0):
    image, masks = coordinates(*shape, 2)
    view = Pipeline([ObjectCrop(size, share)], **PLAIN)(image, masks, np.random.default_rng(seed), lambda: objects)
    assert view.valid.shape == (size, size)
    return view


def test_crops_around_objects_have_one_of_their_pixels_wherever_it_may_be():
    objects = np.zeros((60, 90), bool)
    objects[0, 3] = objects[40, 70] = True
    places = set()
    for seed in range(60):
        x, y = crop_at(seed, objects).masks.astype(int)
        seen = [(row, column) for row, column in ((0, 3), (40, 70)) if ((y == row) & (x == column)).any()]
        assert len(seen) == 1
        places.add((*seen[0], int(y[0, 0]), int(x[0, 0])))
        assert x.max() - x.min() == y.max() - y.min() == 19
    corner, middle = ({place[2:] for place in places if place[:2] == at} for at in ((0, 3), (40, 70)))
    # Row 0 is always the first of the crop; the pixel in the middle is anywhere in it.
    assert {row for row, _ in corner} == {0}
    assert len(middle) > 20
    assert {row for row, _ in middle} <= set(range(21, 41))
    assert {column for _, column in middle} <= set(range(51, 71))


def test_the_share_of_crops_around_objects():
    objects = np.zeros((240, 240), bool)
    objects[5, 5] = True
    views = [crop_at(seed, objects, objects.shape, share=0.25) for seed in range(200)]
    with_object = [bool(((view.masks[0] == 5) & (view.masks[1] == 5)).any()) for view in views]
    # Of crops that lie anywhere, 36 of 221² have the pixel.
    assert 0.15 < np.mean(with_object) < 0.35


def test_without_objects_or_room_crops_lie_anywhere_and_are_padded():
    none = np.zeros((60, 90), bool)
    assert len({crop_at(seed, none).masks.tobytes() for seed in range(10)}) == 10
    objects = np.zeros((12, 90), bool)
    objects[11, 2] = True
    for seed in range(20):
        view = crop_at(seed, objects, (12, 90))
        assert view.valid.sum() == 12 * 20
        assert (view.masks[0][view.valid] == 2).any()
        assert (view.masks[:, ~view.valid] == 255).all()


def test_pixels_of_objects_are_inside_like_all_others():
    image, masks = coordinates(H, W, 3)
    objects = np.random.default_rng(0).random((H, W)) < 0.5
    for steps in ([A.D4(p=1)], [A.Affine(scale=(0.5, 1.5), rotate=(-40, 40), p=1)]):
        with_objects, without = (
            Pipeline(steps)(image, masks, np.random.default_rng(1), where) for where in (lambda: objects, None)
        )
        np.testing.assert_array_equal(with_objects.valid, without.valid)
        np.testing.assert_array_equal(with_objects.masks, without.masks)


def test_a_pipeline_says_whether_it_asks_for_objects():
    assert Pipeline([A.HorizontalFlip(), ObjectCrop(8)]).asks_objects
    assert not Pipeline([A.HorizontalFlip(), ObjectCrop(8, objects=0.0)]).asks_objects
    with pytest.raises(ValueError, match="from 0 to 1, but got 2"):
        ObjectCrop(8, objects=2)


class Cut:
    """An image or mask that may only be cut, and counts the pixels that are."""

    def __init__(self, array):
        self.array, self.shape, self.pixels = array, array.shape, 0

    def __getitem__(self, place):
        part = self.array[place]
        self.pixels += part.shape[0] * part.shape[1]
        return part


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_first_crop_reads_its_pixels_alone_and_gives_what_all_steps_together_give(share):
    image, masks = coordinates(60, 90, 2)
    objects = np.random.default_rng(0).random((60, 90)) < 0.01
    steps = [ObjectCrop(20, share), A.D4(p=1), A.OneOf([A.HorizontalFlip(p=1), A.GaussNoise(p=1)], p=0.5)]
    # A step that does nothing, and draws nothing, makes the crop the second one.
    together = Pipeline([A.HorizontalFlip(p=0), *steps], **PLAIN)
    for seed in range(10):
        cut = [Cut(array) for array in (image, *masks)]
        first = Pipeline(steps, **PLAIN)(cut[0], cut[1:], np.random.default_rng(seed), lambda: objects)
        second = together(image, masks, np.random.default_rng(seed), lambda: objects)
        assert [one.pixels for one in cut] == [20 * 20] * 3
        np.testing.assert_array_equal(first.image, second.image)
        np.testing.assert_array_equal(first.masks, second.masks)
