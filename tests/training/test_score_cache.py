"""Cached scores: equal to live ones, a miss whenever anything is another, resumable, and without a trace."""

import copy
import multiprocessing
import os
import random
import signal
import zipfile
from dataclasses import replace
from functools import partial

import albumentations as A
import numpy as np
import pytest
import torch
from torch import nn

from segdpo import Anchor, PreferenceLoss, Score
from segdpo.data.datasets import RankingDataset
from segdpo.data.transforms import Pipeline
from segdpo.losses import anchors, listwise, objectives
from segdpo.scores.regions import Boundary
from segdpo.training import score_cache as cache_filling
from segdpo.training import score_cache as content
from segdpo.training.preference import PreferenceTask
from segdpo.training.references import FrozenCopy
from segdpo.training.score_cache import DIGEST, CachedScores, ScoreTable, digests_of, score_key

AUGMENT = Pipeline([A.D4(p=1)])


@pytest.fixture
def train(network, data, fit, hinge):
    """Train with a reference; return the losses logged last and the task."""

    def run(reference, loss=hinge, max_steps=9, logged="train/loss", **options):
        module = data(**({"pipeline": AUGMENT, "views": 2} | options))
        task = PreferenceTask(copy.deepcopy(network), reference, loss, partial(torch.optim.SGD, lr=0.5))
        return float(fit(task, module, max_steps=max_steps).callback_metrics[logged]), task

    return run


def calls_of(reference):
    """Return a list that grows with each forward of the reference's network."""
    calls = []
    reference.network.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    return calls


def test_cached_is_live_and_forward_runs_once_a_view(network, train, tmp_path):
    live, _ = train(FrozenCopy(network))
    first = CachedScores(network, tmp_path)
    calls = calls_of(first)
    assert train(first)[0] == pytest.approx(live, abs=1e-5)
    assert sum(calls) == 12 * 2 + 4  # training images in both views, validation in one
    second = CachedScores(network, tmp_path, batch_size=16)
    calls = calls_of(second)
    assert train(second)[0] == pytest.approx(live, abs=1e-5)
    assert calls == []
    assert (first.misses, second.misses) == (0, 0)


def test_rankings_are_cached_too(network, train, tmp_path):
    loss = PreferenceLoss(partial(listwise.plackett_luce, beta=2.0), {"bound": Anchor(1.0, anchors.log_sum_exp)})
    options = {"loss": loss, "items": partial(RankingDataset, length=3)}
    live, _ = train(FrozenCopy(network), **options)
    reference = CachedScores(network, tmp_path)
    assert train(reference, **options)[0] == pytest.approx(live, abs=1e-5)
    assert reference.misses == 0


def test_new_views_are_misses_scored_live_and_told_once(network, train, tmp_path):
    live, _ = train(FrozenCopy(network), views=None)
    reference = CachedScores(network, tmp_path)
    with pytest.warns(UserWarning, match=r"datamodule\.views=4") as told:
        cached, _ = train(reference, views=None)
    assert cached == pytest.approx(live, abs=1e-5)
    assert len([one for one in told if "cached reference scores" in str(one.message)]) == 1
    assert 0 < reference.misses < 9 * 4 * 2


def test_no_augmentation_needs_no_views(network, train, tmp_path):
    reference = CachedScores(network, tmp_path)
    train(reference, views=None, pipeline=Pipeline())
    assert reference.misses == 0


def test_filling_leaves_all_random_states_alone(network, data, fit, hinge, tmp_path):
    class Random(nn.Module):
        def forward(self, image):
            return torch.randn(len(image), 1, *image.shape[2:]) + random.random() + np.random.rand()  # noqa: NPY002

    reference = CachedScores(Random(), tmp_path)
    states = []
    prepare = reference.prepare

    def watched(*args):
        for _ in range(2):
            numbers = np.random.get_state()[1].tolist()  # noqa: NPY002
            states.append((random.getstate(), numbers, torch.get_rng_state().tolist()))
            if len(states) == 1:
                prepare(*args)

    reference.prepare = watched
    task = PreferenceTask(network, reference, hinge, partial(torch.optim.SGD, lr=0.0))
    fit(task, data(), max_steps=1)
    assert states[0] == states[1]
    assert list(tmp_path.iterdir())


def keys(network, fingerprint="f", score=None, precision="32-true"):
    return score_key(network, fingerprint, score or Score(), precision)


def test_a_key_changes_with_whatever_changes_a_score(network):
    strided = copy.deepcopy(network)
    strided[0].padding_mode = "reflect"
    leaky = copy.deepcopy(network)
    leaky[2] = nn.LeakyReLU()
    others = [
        keys(network, fingerprint="g"),
        keys(network, precision="bf16-mixed"),
        keys(network, score=Score(region="disagreement")),
        keys(network, score=Score(reduction="sum")),
        keys(network, score=Score(quantity="log_odds")),
        keys(network, score=Score(region=Boundary(2))),
        keys(network, score=Score(region=Boundary(3))),
        keys(strided),
        keys(leaky),
    ]
    assert len({keys(network), *others}) == 10
    network.train(), network.eval()
    assert keys(copy.deepcopy(network).train()) == keys(network)


def test_a_region_without_a_name_is_refused(network, tmp_path):
    loss = PreferenceLoss(partial(objectives.dpo, beta=1.0), score=Score(region=lambda chosen, rejected: chosen > 0))
    with pytest.raises(ValueError, match=r"told from its name .* use reference=frozen"):
        CachedScores(network, tmp_path).check(loss)


def test_other_weights_never_meet_old_scores(network, train, tmp_path):
    train(CachedScores(network, tmp_path))
    other = copy.deepcopy(network)
    other[4].bias.data += 0.5
    live, _ = train(FrozenCopy(other))
    assert train(CachedScores(other, tmp_path))[0] == pytest.approx(live, abs=1e-5)


def test_kl_to_reference_needs_a_live_reference(network, tmp_path, sgd):
    loss = PreferenceLoss(partial(objectives.dpo, beta=1.0), {"hold": Anchor(1.0, anchors.hold)})
    with pytest.raises(ValueError, match=r"kl_to_reference.*use reference=frozen"):
        PreferenceTask(network, CachedScores(network, tmp_path), loss, sgd)


def test_filling_has_a_batch_size_of_its_own_and_scores_do_not_depend_on_it(network, train, tmp_path):
    live, _ = train(FrozenCopy(network))
    reference = CachedScores(network, tmp_path, batch_size=5)
    calls = calls_of(reference)
    assert train(reference)[0] == pytest.approx(live, abs=1e-5)
    # Twelve training images in each of two views, then four of validation.
    assert calls == [5, 5, 2, 5, 5, 2, 4]
    assert reference.misses == 0


def test_a_digest_sees_every_pixel_of_its_pair_and_no_other(data, monkeypatch):
    batch = next(iter(data().train_dataloader()))
    before = digests_of(batch)
    assert len(set(before.tolist())) == len(batch.chosen) > len(batch.ids)
    first = batch.image_index == 0
    for name, expected in (("image", first), ("valid", first)):
        tensor = getattr(batch, name).clone()
        tensor[0].view(-1)[-1] = 1 - tensor[0].view(-1)[-1].float()
        changed = digests_of(replace(batch, **{name: tensor})) != before
        assert changed.tolist() == expected.tolist()
    for name in ("chosen", "rejected"):
        tensor = getattr(batch, name).clone()
        tensor[-1, 0, 0] += 1
        changed = digests_of(replace(batch, **{name: tensor})) != before
        assert changed.tolist() == [False] * (len(before) - 1) + [True]
    swapped = digests_of(replace(batch, chosen=batch.rejected, rejected=batch.chosen, pair_masks=batch.pair_masks))
    assert not set(swapped.tolist()) & set(before.tolist())
    # Numbers of masks that say nothing cost time, not truth.
    assert digests_of(replace(batch, pair_masks=torch.zeros_like(batch.pair_masks))).tolist() == before.tolist()
    assert digests_of(batch.to("cpu")).tolist() == before.tolist()
    # What small batches are hashed without, large ones are hashed by.
    monkeypatch.setattr(content, "SMALL", 0)
    assert digests_of(batch).tolist() == before.tolist()


def rows(numbers):
    digests = np.frombuffer(b"".join(int(n).to_bytes(16, "little") for n in numbers), DIGEST)
    return digests, np.array([[n, -n] for n in numbers], np.float32)


def test_a_table_finds_what_was_written_and_nothing_else(tmp_path):
    table = ScoreTable(tmp_path, 2)
    assert not table.find(rows([1])[0])[1].any()
    numbers = np.random.default_rng(0).permutation(300)
    for part in np.split(numbers, 3):
        table.write(*rows(part))
    table.write(*rows([256, 0]))  # again, and digests with zeros at the end
    opened = ScoreTable(tmp_path, 2)
    opened.read()
    for one in (table, opened):
        assert len(one) == 300
        values, found = one.find(rows([256, 0, 300, 1, 65536])[0])
        assert found.tolist() == [True, True, False, True, False]
        assert values[found].tolist() == [[256, -256], [0, 0], [1, -1]]


def test_a_damaged_file_is_a_miss(tmp_path, caplog):
    table = ScoreTable(tmp_path, 2)
    table.write(*rows([1, 2]))
    table.write(*rows([3]))
    files = sorted(tmp_path.iterdir())
    kept = [set(part["values"][:, 0]) for part in map(np.load, files)]
    content = bytearray(files[0].read_bytes())
    content[len(content) // 2] ^= 255
    files[0].write_bytes(content[:-30])
    opened = ScoreTable(tmp_path, 2)
    opened.read()
    assert {n for n in (1, 2, 3) if opened.find(rows([n])[0])[1].all()} == kept[1]
    assert "computed anew" in caplog.text


DAMAGES = {
    "another type": {"digests": np.zeros(16, np.float32), "values": np.zeros((1, 2), np.float32)},
    "no digests": {"values": np.zeros((1, 2), np.float32)},
    "rows of another width": {"digests": np.zeros(16, np.uint8), "values": np.zeros((1, 3), np.float32)},
    "half a digest": {"digests": np.zeros(24, np.uint8), "values": np.zeros((1, 2), np.float32)},
    "a number": {"digests": np.uint8(3), "values": np.zeros((1, 2), np.float32)},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_arrays_of_other_things_are_a_miss(tmp_path, caplog, damage):
    np.savez(tmp_path / "k2-x.npz", **DAMAGES[damage])
    table = ScoreTable(tmp_path, 2)
    table.read()
    assert len(table) == 0
    assert str(tmp_path / "k2-x.npz") in caplog.text


def test_a_header_that_asks_for_terabytes_is_a_miss(tmp_path, caplog):
    text = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776,)}\n"
    with zipfile.ZipFile(tmp_path / "k2-x.npz", "w") as archive:
        archive.writestr("digests.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
        archive.writestr("values.npy", b"no array")
    table = ScoreTable(tmp_path, 2)
    table.read()
    assert len(table) == 0
    assert str(tmp_path / "k2-x.npz") in caplog.text


@pytest.mark.timeout(60)
def test_a_pipe_in_the_folder_is_a_miss(tmp_path, caplog):
    os.mkfifo(tmp_path / "k2-x.npz")
    table = ScoreTable(tmp_path, 2)
    table.read()
    assert len(table) == 0
    assert str(tmp_path / "k2-x.npz") in caplog.text


def test_filling_goes_on_after_a_kill(network, noise, data, fit, dpo, sgd, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_filling, "WRITE_EVERY_SECONDS", 0.0)

    def run(kill_at=0):
        reference = CachedScores(network, tmp_path)
        calls = calls_of(reference)

        def kill(*_):
            if len(calls) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        reference.network.register_forward_pre_hook(kill)
        fit(PreferenceTask(copy.deepcopy(network), reference, dpo, sgd), data(noise(40), val=0), max_steps=1)
        return len(calls), reference.misses

    # Forked: a real process that dies, without seconds of imports.
    child = multiprocessing.get_context("fork").Process(target=run, args=(5,))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert run() == (6, 0)  # of ten batches four were kept
    assert run() == (0, 0)


def test_a_loader_of_ones_own_is_refused(network, data, dpo, sgd, tmp_path):
    from lightning.pytorch import Trainer

    task = PreferenceTask(network, CachedScores(network, tmp_path), dpo, sgd)
    trainer = Trainer(accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False)
    with pytest.raises(ValueError, match=r"segdpo DataModule .* or use reference=frozen"):
        trainer.fit(task, data().train_dataloader())


def test_what_is_written_can_be_stopped_by_ctrl_c(network, data, fit, dpo, sgd, tmp_path, monkeypatch):
    reference = CachedScores(network, tmp_path)
    calls = calls_of(reference)

    def stop(module, inputs):
        if len(calls) == 2:
            raise KeyboardInterrupt

    reference.network.register_forward_pre_hook(stop)
    monkeypatch.setattr(cache_filling, "WRITE_EVERY_SECONDS", 1e9)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(PreferenceTask(network, reference, dpo, sgd), data())
    assert list(tmp_path.rglob("k2-*.npz"))
