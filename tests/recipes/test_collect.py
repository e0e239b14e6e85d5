"""Collected preferences: which answers count, what network is asked, and what is kept of its candidates."""

import io
import logging
import os
import struct
import zipfile
from functools import partial

import numpy as np
import pytest
import torch
from small import SMALL, STARTED, composed
from toy_records import record as toy

from segdpo.data.record import Candidates, Record, RecordInfo
from segdpo.data.splits import Splits
from segdpo.preferences.network import with_network
from segdpo.preferences.questions import all_pairs, best_worst
from segdpo.recipes.collect import (
    KeptCandidates,
    answers_for_loss,
    answers_of,
    candidates_key,
    collect_preferences,
    network_to_ask,
    without_errors,
)
from segdpo.recipes.config import build
from segdpo.recipes.finetune import ANSWERS
from segdpo.recipes.run import Run

NO_MASKS = np.empty((0, 4, 4), np.uint8)
RECORD = Record("a/b?", np.zeros((4, 4, 3), np.uint8), NO_MASKS, ())


class Counting:
    """Three masks drawn from the record's generator, and how often that was asked."""

    def __init__(self):
        self.asked = 0

    def __call__(self, record, rng):
        self.asked += 1
        return Candidates(rng.integers(0, 2, (3, 4, 4)).astype(np.uint8), ("one", "two-x", "drei ä"))


class Toys:
    """Six records; of each, mask 2 is gold and mask 0 the farthest from it."""

    classes = ("background", "object")

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return toy(f"toy{index}")


def run_of(config, folder):
    """Three records to train on, one to validate, two to test."""
    numbers = [np.array(part, np.uint32) for part in ([0, 1, 2], [3], [4, 5])]
    return Run(config, Toys(), Splits(*numbers, (3, 1, 2)), folder)


def test_made_once_and_then_read(tmp_path):
    source = Counting()
    first = KeptCandidates(source, tmp_path)(RECORD, np.random.default_rng(0))
    again = KeptCandidates(source, tmp_path)(RECORD, np.random.default_rng(5))
    np.testing.assert_array_equal(first.masks, np.random.default_rng(0).integers(0, 2, (3, 4, 4)))
    np.testing.assert_array_equal(again.masks, first.masks)
    assert again.masks.dtype == np.uint8
    assert (again.names, source.asked) == (("one", "two-x", "drei ä"), 1)
    KeptCandidates(source, tmp_path)(Record("other", RECORD.image, NO_MASKS, ()), np.random.default_rng(0))
    assert (source.asked, len(list(tmp_path.iterdir()))) == (2, 2)


@pytest.mark.parametrize("damage", [b"", b"PK", b"no archive"])
def test_a_damaged_file_is_said_and_made_anew(tmp_path, damage, caplog):
    source = Counting()
    first = KeptCandidates(source, tmp_path)(RECORD, np.random.default_rng(0))
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for content in (damage, whole[: len(whole) // 2]):
        path.write_bytes(content)
        with caplog.at_level(logging.WARNING):
            again = KeptCandidates(source, tmp_path)(RECORD, np.random.default_rng(0))
        np.testing.assert_array_equal(again.masks, first.masks)
        assert str(path) in caplog.text
    assert source.asked == 3


def npz(**members):
    """A .npz whose members hold the bytes given, or an array."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            with archive.open(f"{name}.npy", "w") as member:
                member.write(content) if isinstance(content, bytes) else np.save(member, content)
    return buffer.getvalue()


def header(text):
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text.encode() + b"\n"


NAMES = np.array(["a", "b"])
TWO = np.zeros((2, 4, 4), np.uint8)
DAMAGED = {
    "an array of 4 TiB": npz(masks=header("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,)}")),
    "3 GiB said, few kept": npz(
        masks=header("{'descr': '|u1', 'fortran_order': False, 'shape': (3, 32768, 32768)}") + bytes(1 << 20),
        names=NAMES,
    ),
    "half a header": npz(masks=header("{'descr': '|u1', 'fortran_order': (")),
    "a negative size": npz(masks=header("{'descr': '|u1', 'fortran_order': False, 'shape': (-1,)}")),
    "no array": npz(masks=b"no array", names=NAMES),
    "names of no masks": npz(masks=TWO, names=np.float32(3)),
    "names of other masks": npz(masks=TWO, names=np.array(["a"])),
    "masks of floats": npz(masks=TWO.astype(np.float32), names=NAMES),
    "masks of another image": npz(masks=TWO[:, :3], names=NAMES),
    "no names": npz(masks=TWO),
}
# The stored block of the first member, its length destroyed.
_whole = npz(masks=TWO, names=NAMES)
_start = 30 + struct.unpack_from("<H", _whole, 26)[0] + struct.unpack_from("<H", _whole, 28)[0]
DAMAGED["damaged deflate"] = _whole[:_start] + b"\x01\xff\xff\xff\xff" + _whole[_start + 5 :]


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_file_that_numpy_fails_at_is_made_anew(tmp_path, damage, caplog):
    source = Counting()
    first = KeptCandidates(source, tmp_path)(RECORD, np.random.default_rng(0))
    (path,) = tmp_path.iterdir()
    path.write_bytes(DAMAGED[damage])
    again = KeptCandidates(source, tmp_path)(RECORD, np.random.default_rng(0))
    np.testing.assert_array_equal(again.masks, first.masks)
    assert source.asked == 2
    assert str(path) in caplog.text


@pytest.mark.timeout(60)
def test_a_pipe_is_made_anew_without_waiting(tmp_path, caplog):
    source = Counting()
    first = KeptCandidates(source, tmp_path)(RECORD, np.random.default_rng(0))
    (path,) = tmp_path.iterdir()
    path.unlink()
    os.mkfifo(path)
    again = KeptCandidates(source, tmp_path)(RECORD, np.random.default_rng(0))
    np.testing.assert_array_equal(again.masks, first.masks)
    assert (source.asked, path.is_file()) == (2, True)
    assert str(path) in caplog.text


def test_no_candidate_is_an_answer_too(tmp_path):
    empty = Candidates(NO_MASKS, ())
    for _ in range(2):
        found = KeptCandidates(lambda record, rng: empty, tmp_path)(RECORD, np.random.default_rng(0))
        assert (found.masks.shape, found.names) == ((0, 4, 4), ())


def key(*overrides, weights):
    return candidates_key(composed(*SMALL, "candidates=own_candidates", *overrides, folder=weights.parent), weights)


def test_the_key_is_of_all_that_masks_depend_on_and_of_nothing_else(tmp_path):
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"one")
    first = key(weights=weights)
    same = ["loss=sft", "beta=3", "judge=dice", "questions=all_pairs", "trainer.max_steps=9"]
    assert first == key(*same, weights=weights)
    others = [["seed=1"], ["data.seed=1"], ["candidates.count=4"], ["candidates.sources.logit_noise.amplitude=9"]]
    keys = {key(*other, weights=weights) for other in others}
    weights.write_bytes(b"another network")
    keys.add(key(weights=weights))
    assert len(keys | {first}) == 6


def test_what_a_function_of_the_users_own_makes_is_not_kept(tmp_path):
    config = composed(*SMALL, "candidates=tta", "candidates._target_=my_masks.turned", folder=tmp_path)
    assert candidates_key(config, tmp_path / "weights.safetensors") is None


@pytest.mark.parametrize(
    ("candidates", "from_file", "kept"), [("tta", True, True), ("tta", False, False), ("annotators", True, False)]
)
def test_sources_that_ask_no_network_and_later_rounds_are_not_kept(candidates, from_file, kept, tmp_path):
    run = run_of(composed(*SMALL, f"candidates={candidates}", folder=tmp_path), tmp_path)
    weights = tmp_path / "weights.safetensors" if from_file else None
    collect_preferences(run, run.splits.train, torch.nn.Conv2d(3, 1, 1), weights=weights)
    assert len(list((tmp_path / "cache" / "candidates").rglob("*.npz"))) == (6 if kept else 0)


def test_the_reference_draws_candidates_at_the_size_it_was_trained_on():
    config = composed(*STARTED, "transforms=resized", "transforms.size=16")
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 1, 1), torch.nn.Dropout2d(0.5))
    sizes: list[torch.Size] = []
    asked = network_to_ask(config, network)
    asked.model.register_forward_pre_hook(lambda _, given: sizes.append(given[0].shape))
    for name, count in (("own_candidates", 8), ("mc_dropout", 2)):
        source = with_network(build(composed(f"candidates={name}", f"candidates.count={count}").candidates), asked)
        assert source(toy(size=(40, 24)), np.random.default_rng(1)).masks.shape == (count, 40, 24)
    assert {tuple(size[2:]) for size in sizes} == {(16, 16)}


def test_the_network_that_is_asked_is_a_copy_in_fp32():
    network = torch.nn.Conv2d(3, 1, 1).bfloat16().train()
    asked = network_to_ask(composed(*STARTED), network)
    assert (asked.model.weight.dtype, network.weight.dtype) == (torch.float32, torch.bfloat16)
    assert network.training
    assert network.weight.requires_grad


def test_the_network_that_is_asked_is_on_the_device_that_was_chosen(tmp_path):
    network, config = torch.nn.Conv2d(3, 1, 1), composed(*STARTED, "+device=meta")
    assert (asked := network_to_ask(config, network)).device == "meta"
    assert (asked.model.weight.device.type, network.weight.device.type) == ("meta", "cpu")
    assert network_to_ask(composed(*STARTED), network).device == "cpu"
    (weights := tmp_path / "weights.safetensors").write_bytes(b"one")
    assert key("+device=cuda", weights=weights) != key(weights=weights)


@pytest.mark.parametrize(
    ("overrides", "answers"),
    [
        # Of 2, 4 and 8 masks: the best, K − 1; best and worst, ⌈3K/2⌉ − 2; every pair; an order, ⌈log₂ K!⌉.
        (["loss=sft"], [1, 3, 7]),
        (["loss=dpo"], [1, 4, 10]),
        (["loss=sft", "questions=noisy_best_worst"], [1, 4, 10]),
        (["loss=sft", "questions.min_gap=0.05"], [1, 4, 10]),
        (["loss=sft", "questions=all_pairs"], [1, 6, 28]),
        (["loss=sft", "questions=weighted_all_pairs"], [1, 6, 28]),
        (["loss=dpo", "questions=adjacent_ranks"], [1, 5, 16]),
        (["loss=plackett_luce", "datamodule=ranking", "datamodule.items.length=4"], [1, 5, 16]),
    ],
    ids=str,
)
def test_answers_by_what_is_read(overrides, answers):
    config = composed(*STARTED, *overrides)
    assert [answers_for_loss(config)(masks) for masks in (2, 4, 8)] == answers
    if "loss=sft" in overrides:
        assert [ANSWERS["chosen"](config)(masks) for masks in (2, 4, 8)] == answers


def test_rankings_that_the_data_came_with_count_as_rankings():
    assert answers_of(RecordInfo("a", pairs=3, ranking=4)) == 3
    assert answers_of(RecordInfo("a", pairs=0, ranking=4)) == 5
    assert answers_of(RecordInfo("a")) == 0


def test_no_answer_is_wrong_without_a_choice():
    def coin(*_):
        return True

    rule = without_errors(partial(all_pairs, min_gap=0.25, choice=coin))
    assert (rule.func, rule.keywords) == (all_pairs, {"min_gap": 0.25})
    assert without_errors(best_worst) is best_worst


def test_answers_are_wrong_in_training_and_validation_and_right_in_test(tmp_path):
    noisy = [
        "questions=noisy_best_worst",
        "questions.choice.probability=0.999",
        "questions.choice.choice.temperature=1e-6",
    ]
    config = composed(*STARTED, *noisy)
    run = run_of(config, tmp_path)
    judged = collect_preferences(run, run.splits.train, None)
    pairs = {
        name: {judged.source[int(number)].pairs[0].chosen for number in getattr(judged.splits, name)}
        for name in ("train", "val", "test")
    }
    assert pairs == {"train": {0}, "val": {0}, "test": {2}}
