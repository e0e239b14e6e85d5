"""Kept candidates: a network asked once for each image, whatever runs come after, and never for another network."""

import io
import logging
import os
import struct
import zipfile

import numpy as np
import pytest
from small import SMALL, composed

from segdpo.data.record import Candidates, Record
from segdpo.recipes.collect import KeptCandidates, asking_the_reference, candidates_key, network_node, source_of_masks
from segdpo.recipes.config import plain
from segdpo.recipes.run import open_setting

NO_MASKS = np.empty((0, 4, 4), np.uint8)
RECORD = Record("a/b?", np.zeros((4, 4, 3), np.uint8), NO_MASKS, ())


class Counting:
    """Three masks drawn from the record's generator, and how often that was asked."""

    def __init__(self):
        self.asked = 0

    def __call__(self, record, rng):
        self.asked += 1
        return Candidates(rng.integers(0, 2, (3, 4, 4)).astype(np.uint8), ("one", "two-x", "drei ä"))


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


def key(*overrides, path):
    config = composed(*SMALL, "candidates=own_candidates", *overrides, folder=path.parent)
    network = network_node(config, open_setting(config).source, path)
    return candidates_key(config, asking_the_reference(plain(config.candidates), network, None))


def test_the_key_is_of_all_that_masks_depend_on_and_of_nothing_else(tmp_path):
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"one")
    first = key(path=weights)
    assert first == key("loss=sft", "beta=3", "judge=dice", "questions=all_pairs", "trainer.max_steps=9", path=weights)
    others = [["seed=1"], ["data.seed=1"], ["candidates.count=4"], ["candidates.sources.logit_noise.amplitude=9"]]
    keys = {key(*other, path=weights) for other in others}
    weights.write_bytes(b"another network")
    keys.add(key(path=weights))
    assert len(keys | {first}) == 6


def test_what_a_function_of_the_users_own_makes_is_not_kept():
    config = composed(*SMALL, "candidates=tta")
    node = {"_target_": "my_masks.turned", "predict": {"_target_": "segdpo.preferences.predict_with"}}
    assert candidates_key(config, node) is None


def test_sources_that_ask_no_network_and_later_rounds_are_not_kept(tmp_path):
    for pairs, keep, kept in [("tta", True, True), ("tta", False, False), ("annotators", True, False)]:
        config = composed(*SMALL, f"candidates={pairs}", folder=tmp_path)
        network = {"_target_": "torch.nn.Conv2d", "in_channels": 3, "out_channels": 1, "kernel_size": 1}
        assert isinstance(source_of_masks(config, network, keep=keep), KeptCandidates) == kept
