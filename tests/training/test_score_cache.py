"""Cached scores: equal to live ones, missing whenever anything differs, and kept when a run is interrupted."""

import copy
import errno
import multiprocessing
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import albumentations as A
import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from segdpo import Anchor, PreferenceLoss, Score
from segdpo.data import Pipeline, RankingDataset
from segdpo.losses import anchors, listwise, objectives
from segdpo.scores import Boundary
from segdpo.training import CachedScores, FrozenCopy, PreferenceTask, ScoreTable, score_cache
from segdpo.training.score_cache import DIGEST, cache_key, digests_of

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


def test_cached_equals_live_and_costs_a_forward_per_view(network, train, data, tmp_path):
    live, _ = train(FrozenCopy(network))
    first = CachedScores(network, tmp_path)
    calls = calls_of(first)
    assert train(first)[0] == pytest.approx(live, abs=1e-5)
    loader, views = data(pipeline=AUGMENT, views=2).train_dataloader(), set()
    for epoch in range(2):
        loader.order.set_epoch(epoch)
        views |= {image.numpy().tobytes() for batch in loader for image in batch.image}
    # Training images in both views, a few of which are the same, and validation in one.
    assert 12 < len(views) <= 24
    assert sum(calls) == len(views) + 4
    second = CachedScores(network, tmp_path)
    calls = calls_of(second)
    assert train(second)[0] == pytest.approx(live, abs=1e-5)
    assert calls == []
    assert first.computed > 12 * 2 + 4
    assert second.computed == 0


def test_rankings_are_cached_too(network, train, tmp_path):
    loss = PreferenceLoss(partial(listwise.plackett_luce, beta=2.0), {"bound": Anchor(1.0, anchors.log_sum_exp)})
    options = {"loss": loss, "items": partial(RankingDataset, length=3)}
    live, _ = train(FrozenCopy(network), **options)
    for expected in (12 * 3 + 4, 0):
        reference = CachedScores(network, tmp_path)
        assert train(reference, **options)[0] == pytest.approx(live, abs=1e-5)
        # Two of three views, each epoch another order of images, and one batch of validation.
        assert bool(reference.computed) is bool(expected)


def test_a_trainer_of_another_precision_gets_logits(network, train, data, tmp_path):
    _, task = train(CachedScores(network, tmp_path))
    batch = next(iter(data().train_dataloader()))
    assert set(task.reference(batch, task.policy)) == {task.loss.score, task.watched}
    files = sorted(tmp_path.rglob("*.scores"))
    sizes = [path.stat().st_size for path in files]
    task.trainer = Trainer(accelerator="cpu", precision="bf16-mixed", logger=False, enable_checkpointing=False)
    assert isinstance(task.reference(batch, task.policy), torch.Tensor)
    assert [path.stat().st_size for path in files] == sizes


def test_a_task_is_copied_after_training_and_its_copy_scores_live(network, train, data, tmp_path, monkeypatch):
    monkeypatch.setattr(score_cache, "SMALL", 0)  # hash with threads
    _, task = train(CachedScores(network, tmp_path))
    copied = copy.deepcopy(task)
    batch = next(iter(data().train_dataloader()))
    assert isinstance(copied.reference(batch, copied.policy), torch.Tensor)


def test_a_forked_process_has_threads_of_its_own(data, monkeypatch):
    monkeypatch.setattr(score_cache, "SMALL", 0)
    batch = next(iter(data().train_dataloader()))
    reference = CachedScores(nn.Conv2d(3, 1, 1), "unused")

    def hash_batch():
        reference._task = SimpleNamespace(trainer=SimpleNamespace(precision="32-true"))
        reference._precision = score_cache._precision_of(reference._task.trainer)
        reference.see(batch)

    hash_batch()
    child = multiprocessing.get_context("fork").Process(target=hash_batch, daemon=True)
    child.start()
    child.join(60)
    assert child.exitcode == 0


def test_new_views_are_scored_live_with_one_warning(network, train, tmp_path):
    live, _ = train(FrozenCopy(network), views=None)
    reference = CachedScores(network, tmp_path)
    with pytest.warns(UserWarning, match=r"datamodule\.views=4") as warned:
        cached, _ = train(reference, views=None)
    assert cached == pytest.approx(live, abs=1e-5)
    assert len([one for one in warned if "cached reference scores" in str(one.message)]) == 1
    assert 12 * 3 + 4 < reference.computed < 9 * 4 * 3


def test_no_augmentation_needs_no_views(network, train, tmp_path):
    reference = CachedScores(network, tmp_path)
    calls = calls_of(reference)
    train(reference, views=None, pipeline=Pipeline())
    assert sum(calls) == 12 + 4


def keys(network, fingerprint="f", score=None, precision="32-true"):
    return cache_key(network, fingerprint, [score or Score()], precision)


def test_a_key_changes_with_everything_that_changes_a_score(network):
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
    with pytest.raises(ValueError, match=r"region.*lambda.*reference=frozen"):
        CachedScores(network, tmp_path).check(loss)


def test_other_weights_do_not_find_old_scores(network, train, tmp_path):
    train(CachedScores(network, tmp_path))
    other = copy.deepcopy(network)
    other[4].bias.data += 0.5
    live, _ = train(FrozenCopy(other))
    assert train(CachedScores(other, tmp_path))[0] == pytest.approx(live, abs=1e-5)


def test_kl_to_reference_needs_a_live_reference(network, tmp_path, sgd):
    loss = PreferenceLoss(partial(objectives.dpo, beta=1.0), {"hold": Anchor(1.0, anchors.hold)})
    with pytest.raises(ValueError, match=r"hold_anchor.*reference=frozen"):
        PreferenceTask(network, CachedScores(network, tmp_path), loss, sgd)


def test_a_digest_depends_on_every_pixel_of_its_pair_and_no_other(data):
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
    assert digests_of(batch.to("cpu")).tolist() == before.tolist()
    with ThreadPoolExecutor(2) as threads:
        assert digests_of(batch, threads.map).tolist() == before.tolist()


def test_shared_masks_do_not_change_a_digest(data, noise):
    class AllPairs(noise):
        def __getitem__(self, i):
            return replace(super().__getitem__(i), pairs=(), ranking=(2, 0, 1, 3))

    batch = next(iter(data(AllPairs()).train_dataloader()))
    assert batch.shared is not None
    assert digests_of(batch).tolist() == digests_of(replace(batch, shared=None)).tolist()


def rows(numbers):
    digests = np.frombuffer(b"".join(int(n).to_bytes(16, "little") for n in numbers), DIGEST)
    return digests, np.array([[n, -n] for n in numbers], np.float32)


def test_a_table_finds_what_was_added_and_nothing_else(tmp_path):
    table = ScoreTable(tmp_path, 2)
    assert not table.find(rows([1])[0])[1].any()
    # More rows than are kept without sorting.
    numbers = np.random.default_rng(0).permutation(3000)
    for part in np.split(numbers, 3):
        table.add(*rows(part))
    table.add(*rows([256, 0]))  # again, and digests with zeros at the end
    opened, other_width = ScoreTable(tmp_path, 2), ScoreTable(tmp_path, 3)
    for one in (table, opened):
        values, found = one.find(rows([256, 0, 3000, 1, 65536])[0])
        assert found.tolist() == [True, True, False, True, False]
        assert values[found].tolist() == [[256, -256], [0, 0], [1, -1]]
        assert one.find(rows(numbers)[0])[1].all()
    assert not other_width.find(rows(numbers)[0])[1].any()


def test_a_table_finds_what_other_processes_add(tmp_path):
    one, other = ScoreTable(tmp_path, 2), ScoreTable(tmp_path, 2)
    for number in range(3):
        one.add(*rows([number]))
        assert other.find(rows([number])[0])[1].all()
        other.add(*rows([number + 10]))
    assert one.find(rows([10, 11, 12])[0])[1].all()


def test_damaged_and_incomplete_rows_are_missing(tmp_path, caplog):
    table = ScoreTable(tmp_path, 2)
    table.add(*rows([1, 2, 3, 4]))
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    size = len(content) // 4
    content[size + size // 2] ^= 1
    path.write_bytes(content[:-3])
    opened = ScoreTable(tmp_path, 2)
    assert opened.find(rows([1, 2, 3, 4])[0])[1].tolist() == [True, False, True, False]
    assert "1 of 3 rows are damaged" in caplog.text
    # Zeros, as a power cut leaves them, an empty file, text, and a folder.
    path.write_bytes(bytes(4 * size))
    (tmp_path / "2-b.scores").write_bytes(b"")
    (tmp_path / "2-c.scores").write_text("text " * 100)
    (tmp_path / "2-d.scores").mkdir()
    os.mkfifo(tmp_path / "2-e.scores")
    caplog.clear()
    opened = ScoreTable(tmp_path, 2)
    for _ in range(3):
        assert not opened.find(rows([0, 1, 2, 3, 4])[0])[1].any()
    for name in (path.name, "2-d.scores"):
        assert len([one for one in caplog.records if name in one.getMessage()]) == 1


def test_a_row_that_is_still_being_written_is_found_later(tmp_path):
    ScoreTable(tmp_path, 2).add(*rows([1, 2]))
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    path.write_bytes(content[:-3])
    table = ScoreTable(tmp_path, 2)
    assert table.find(rows([1, 2])[0])[1].tolist() == [True, False]
    path.write_bytes(content)
    assert table.find(rows([1, 2])[0])[1].tolist() == [True, True]


def test_scores_are_kept_when_a_run_is_killed(network, noise, data, fit, dpo, sgd, tmp_path):
    def run(kill_at=0):
        reference = CachedScores(network, tmp_path)
        calls = calls_of(reference)

        def kill(*_):
            if len(calls) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        reference.network.register_forward_pre_hook(kill)
        fit(PreferenceTask(copy.deepcopy(network), reference, dpo, sgd), data(noise(40), val=0), max_steps=10)
        return len(calls)

    # Forked: a real process that dies, without seconds of imports.
    child = multiprocessing.get_context("fork").Process(target=run, args=(5,))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert run() == 6  # of ten batches four were kept
    assert run() == 0


def test_a_resumed_run_ends_with_the_same_weights(network, data, fit, dpo, sgd, tmp_path):
    def run(folder, **options):
        reference = CachedScores(network, tmp_path / folder)
        task = PreferenceTask(copy.deepcopy(network), reference, dpo, partial(torch.optim.SGD, lr=0.5))
        return fit(task, data(pipeline=AUGMENT, views=2, val=0), **options), task

    _, whole = run("a", max_steps=10)
    stopped, _ = run("b", max_steps=5)
    stopped.save_checkpoint(tmp_path / "a.ckpt")
    _, resumed = run("b", max_steps=10, ckpt_path=tmp_path / "a.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_any_loader_will_do(network, data, dpo, sgd, fit, tmp_path):
    reference = CachedScores(network, tmp_path)
    task = PreferenceTask(network, reference, dpo, sgd)
    trainer = Trainer(accelerator="cpu", max_steps=2, logger=False, enable_checkpointing=False)
    trainer.fit(task, data().train_dataloader())
    assert reference.computed > 0


def test_a_disk_that_cannot_be_written_to_stops_with_its_name(network, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file.*reference=frozen"):
        ScoreTable(tmp_path / "file", 2).add(*rows([1]))


def test_the_folder_of_another_user_is_read_and_new_scores_stay_in_memory(tmp_path, monkeypatch, caplog):
    ScoreTable(tmp_path, 2).add(*rows([1]))
    before = sorted(tmp_path.iterdir())

    def refuse(self, *_):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    table = ScoreTable(tmp_path, 2)
    assert table.find(rows([1])[0])[1].all()
    monkeypatch.setattr(type(tmp_path), "open", refuse)
    for number in (2, 3):
        table.add(*rows([number]))
    found, known = table.find(rows([1, 2, 3])[0])
    assert known.all()
    np.testing.assert_array_equal(found, rows([1, 2, 3])[1])
    assert caplog.text.count(f"{tmp_path} may not be written to") == 1
    assert sorted(tmp_path.iterdir()) == before
