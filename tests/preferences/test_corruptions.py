from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from segdpo.data.record import Record
from segdpo.preferences.corruptions import KINDS, corrupt

CONF = str(Path(__file__).parents[2] / "conf")


def rng_of(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


EMPTY = np.zeros((8, 8), np.uint8)
SQUARE = np.pad(np.ones((4, 4), np.uint8), 2)


def record_of(mask: np.ndarray, **more) -> Record:
    image = np.zeros((*mask.shape, 3), np.uint8)
    return Record("r", image, mask[None], ("first",), gold=mask, **more)


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("class_swap", "spurious_blob")])
def test_more_severe_is_worse_on_average(kind):
    y, x = np.ogrid[:64, :64]
    mask = np.zeros((64, 64), np.uint8)
    for cy, cx in ((14, 14), (14, 46), (46, 16), (44, 48)):
        mask[np.hypot(y - cy, x - cx) < 10] = 1

    def changed(severity):
        return np.mean([(KINDS[kind](mask, severity, rng_of(seed)) != mask).mean() for seed in range(8)])

    assert changed(0.1) < changed(1.0)


masks = st.integers(0, 2**32 - 1).flatmap(
    lambda seed: st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(2, 5), st.sampled_from((0.0, 0.2))).map(
        lambda p: _blobs(seed, *p)
    )
)


def _blobs(seed: int, height: int, width: int, classes: int, ignored: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.random((classes, height, width)), (0, 1.5, 1.5))
    mask = smooth.argmax(0).astype(np.uint8)
    mask[rng.random(mask.shape) < ignored] = 255
    return mask


@settings(max_examples=40, deadline=None)
@given(mask=masks, severity=st.floats(0.01, 1), seed=st.integers(0, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_keeps_to_the_contract(kind, mask, severity, seed):
    before = mask.copy()
    corrupted = KINDS[kind](mask, severity, rng_of(seed))
    np.testing.assert_array_equal(mask, before)
    assert corrupted.dtype == np.uint8
    assert corrupted.shape == mask.shape
    assert not np.shares_memory(corrupted, mask)
    np.testing.assert_array_equal(corrupted == 255, mask == 255)
    assert set(np.unique(corrupted)) <= set(np.unique(mask)) | {0, 1}
    np.testing.assert_array_equal(corrupted, KINDS[kind](mask, severity, rng_of(seed)))
    if _can_change(kind, mask):
        assert (corrupted != mask).any()


def _can_change(kind: str, mask: np.ndarray) -> bool:
    """Where the docstrings promise another mask; independent of how they find it."""
    classes = set(np.unique(mask)) - {255}
    if kind in ("holes", "lost_component"):
        return bool(classes - {0})
    if kind == "spurious_blob":
        return 0 in classes or len(classes) > 1
    if kind == "class_swap":
        return len(classes) > 1
    if kind == "merged_component":
        return any(_apart(mask == c) for c in classes - {0} if 255 not in mask)
    touching = (mask[1:] != mask[:-1]).any() or (mask[:, 1:] != mask[:, :-1]).any()
    return kind in ("grow", "shrink", "shift") and 255 not in mask and bool(touching)


def _apart(region: np.ndarray) -> bool:
    return ndimage.label(region, np.ones((3, 3)))[1] > 1


@pytest.mark.parametrize("kind", KINDS)
def test_an_ignored_mask_comes_back_as_a_copy(kind):
    ignored = np.full((8, 8), 255, np.uint8)
    np.testing.assert_array_equal(KINDS[kind](ignored, 0.5, rng_of()), ignored)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "spurious_blob"])
def test_an_empty_mask_comes_back_as_a_copy_unless_a_blob_is_added(kind):
    np.testing.assert_array_equal(KINDS[kind](EMPTY, 0.5, rng_of()), EMPTY)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("severity", [0, -0.1, 1.1, float("nan")])
def test_a_severity_out_of_range_is_refused(kind, severity):
    with pytest.raises(ValueError, match="severity above 0 and at most 1"):
        KINDS[kind](SQUARE, severity, rng_of())


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_mask_is_refused(kind):
    with pytest.raises(TypeError, match="uint8"):
        KINDS[kind](SQUARE.astype(np.int64), 0.5, rng_of())
    with pytest.raises(ValueError, match=r"\[H, W\] but got \(1, 8, 8\)"):
        KINDS[kind](SQUARE[None], 0.5, rng_of())


def test_corrupt_draws_every_kind_once_before_any_twice():
    mask = np.zeros((64, 64), np.uint8)
    mask[8:24, 8:24] = 1
    mask[36:56, 30:50] = 1
    candidates = corrupt(record_of(mask), rng_of(), count=20)
    kinds = [name.split("-")[0] for name in candidates.names]
    assert sorted(kinds[:10]) == sorted(kinds[10:]) == sorted(KINDS)
    assert candidates.masks.shape == (20, 64, 64)
    assert all((corrupted != mask).any() for corrupted in candidates.masks)
    assert len(set(candidates.names)) == 20


def test_corrupt_names_the_severity_within_its_range():
    names = corrupt(record_of(SQUARE), rng_of(), count=30, severity=(0.4, 0.6)).names
    assert all(40 <= int(name.rsplit("_", 1)[1]) <= 60 for name in names)


def test_corrupt_goes_on_to_another_kind_where_one_cannot_change_the_mask():
    names = corrupt(record_of(SQUARE), rng_of(), count=4, kinds=["merged_component", "grow"]).names
    assert all(name.startswith("grow") for name in names)
    assert corrupt(record_of(EMPTY), rng_of(), count=1).names[0].startswith("spurious_blob")


def test_corrupt_says_which_record_cannot_be_corrupted():
    with pytest.raises(ValueError, match="record 'r' that grow, shrink can change"):
        corrupt(record_of(EMPTY), rng_of(), kinds=["grow", "shrink"])


def test_corrupt_starts_from_a_named_mask_and_can_put_it_first():
    record = Record("r", np.zeros((8, 8, 3), np.uint8), np.stack([EMPTY, SQUARE]), ("none", "good"))
    candidates = corrupt(record, rng_of(), count=1, kinds=["shrink"], start="good", with_start=True)
    np.testing.assert_array_equal(candidates.masks[0], SQUARE)
    assert candidates.masks[1].sum() == 4
    assert candidates.names[0] == "start"


def test_corrupt_takes_a_function_of_the_users():
    candidates = corrupt(record_of(SQUARE), rng_of(), count=1, kinds={"mine": lambda mask, severity, rng: 1 - mask})
    np.testing.assert_array_equal(candidates.masks[0], 1 - SQUARE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count ≥ 1"),
        ({"severity": (0.0, 1.0)}, "0 < low"),
        ({"severity": (0.8, 0.2)}, "0 < low"),
        ({"kinds": ["grow", "grwo"]}, "grow, shrink.*but got 'grwo'"),
        ({"kinds": []}, "at least one kind"),
        ({"start": "expert"}, "'gold' or a mask of record 'r' \\(first\\) but got 'expert'"),
    ],
)
def test_corrupt_refuses_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        corrupt(record_of(SQUARE), rng_of(), **options)


def test_corrupt_without_gold_says_how_to_go_on():
    record = Record("r", np.zeros((8, 8, 3), np.uint8), SQUARE[None], ("crowd",))
    with pytest.raises(ValueError, match=r"gold mask in record 'r'.*start='crowd'"):
        corrupt(record, rng_of())


def test_the_yaml_composes_and_lists_every_kind():
    with initialize_config_dir(CONF, version_base=None):
        config = compose(overrides=["+candidates=corruptions", "candidates.count=3"])
    assert list(config.candidates.kinds) == list(KINDS)
    source = instantiate(config.candidates)
    expected = corrupt(record_of(SQUARE), rng_of(7), count=3)
    candidates = source(record_of(SQUARE), rng_of(7))
    assert candidates.names == expected.names
    np.testing.assert_array_equal(candidates.masks, expected.masks)
