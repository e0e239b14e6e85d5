"""The data module: the same batches from any number of workers, and after a resume, under Lightning's own loop."""

import warnings
from functools import partial
from itertools import chain

import albumentations as A
import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from toy_records import Listed, record, toys

from segdpo.data import datamodule
from segdpo.data.batches import PairBatch, RankingBatch, SupervisedBatch
from segdpo.data.datamodule import DataModule
from segdpo.data.datasets import PreferenceDataset, RankingDataset, SupervisedDataset
from segdpo.data.splits import Splits, split_by_fraction
from segdpo.data.transforms import Pipeline
from segdpo.files import DataError

AUGMENT = Pipeline([A.D4(p=1), A.Affine(rotate=(-30, 30), p=0.5), A.GaussNoise(p=0.5)])
WHOLE = Pipeline()
NO_SPLIT = partial(split_by_fraction, val=0, test=0)


def module(source=None, **options):
    return DataModule(source or toys(20), AUGMENT, WHOLE, **{"batch_size": 4, **options})


def epochs(data, count=3):
    """All batches of some epochs, as plain values."""
    loader, found = data.train_dataloader(), []
    for epoch in range(count):
        loader.order.set_epoch(epoch)
        found.append([values_of(batch) for batch in loader])
    return found


def values_of(batch):
    values = {name: value for name, value in vars(batch).items() if value is not None}
    for name in ("index", "shared", "shared.index", "shared.index.rows"):
        nested = values.pop(name, None)
        values |= {} if nested is None else {f"{name}.{key}": value for key, value in vars(nested).items()}
    return values


def same(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        for name, value in one.items()
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(workers):
    here, there = epochs(module()), epochs(module(workers=workers))
    assert [len(epoch) for epoch in here] == [len(epoch) for epoch in there] == [4, 4, 4]
    for one, other in zip(chain(*here), chain(*there), strict=True):
        assert same(one, other)
    # Epochs differ, in order and in views; so does another seed.
    assert [batch["ids"] for batch in here[0]] != [batch["ids"] for batch in here[1]]
    assert not same(here[0][0], epochs(module(seed=1), 1)[0][0])


def test_each_split_is_loaded_once_and_evaluation_never_changes():
    data = module(split=partial(split_by_fraction, val=0.2, test=0.3))
    seen = {}
    for split in ("val", "test"):
        loader = getattr(data, f"{split}_dataloader")()
        first, again = list(loader), list(loader)
        assert all(torch.equal(a.image, b.image) for a, b in zip(first, again, strict=True))
        seen[split] = [name for batch in first for name in batch.ids]
        assert seen[split] == [f"toy{i}" for i in getattr(data.splits, split)]
    train = {name for batch in epochs(data, 1)[0] for name in batch["ids"]}
    assert (len(seen["val"]), len(seen["test"])) == (4, 6)
    assert not train & {*seen["val"], *seen["test"]}


def test_given_splits_are_taken_and_no_record_is_described():
    class Silent(Listed):
        def describe(self, index):
            raise AssertionError("described")

    given = Splits(*(np.array(numbers, np.uint32) for numbers in ([3, 1], [0], [])), groups=(2, 1, 0))
    data = module(Silent(toys(4).records), split=given)
    assert data.splits is given


def test_no_val_no_loader():
    data = module(split=NO_SPLIT)
    assert data.val_dataloader() == data.test_dataloader() == []


def test_fewer_images_than_a_batch_still_train():
    (batches,) = epochs(module(toys(3), split=NO_SPLIT), 1)
    assert [len(batch["ids"]) for batch in batches] == [3]


def test_views_come_again():
    first, second, third = (
        {name: batch["image"][i] for batch in epoch for i, name in enumerate(batch["ids"])}
        for epoch in epochs(module(views=2, split=NO_SPLIT))
    )
    assert all(torch.equal(first[name], third[name]) for name in first)
    assert not all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("items", "kind"),
    [
        (partial(PreferenceDataset, pairs_per_image=1), PairBatch),
        (partial(RankingDataset, length=3), RankingBatch),
        (partial(SupervisedDataset, target="any"), SupervisedBatch),
    ],
)
def test_items_say_what_a_batch_is(items, kind):
    source = Listed([record(f"r{i}", ranking=(0, 1, 2)) for i in range(10)])
    gold = partial(SupervisedDataset, target="gold")
    data = module(source, items=items, eval_items=gold)
    assert type(next(iter(data.train_dataloader()))) is kind
    assert type(next(iter(data.val_dataloader()))) is SupervisedBatch


def partly(*kinds):
    """Records of which some have no pairs, some no gold: "pg", "p", "g", ""."""
    return Listed(
        [record(f"{k}{kind}", pairs=((0, 1),) * ("p" in kind), gold="g" in kind) for k, kind in enumerate(kinds)]
    )


def held_out(*numbers):
    return Splits(*(np.array(part, np.uint32) for part in ([0], numbers, numbers)), groups=(1, 1, 1))


def test_held_out_images_count_for_what_they_have():
    data = module(partly("pg", "g", "p", "", "pg", "g"), split=held_out(1, 2, 3, 4, 5))
    for loaders in (data.val_dataloader(), data.test_dataloader()):
        pairs, alone = (list(loader) for loader in loaders)
        assert [(type(batch), batch.ids) for batch in pairs] == [(PairBatch, ["2p", "4pg"])]
        assert [(type(batch), batch.ids) for batch in alone] == [(SupervisedBatch, ["1g", "5g"])]
        # An image without gold is unknown everywhere, so that it has no overlap.
        assert (pairs[0].gold[0] == 255).all()
        assert (pairs[0].gold[1] != 255).all()
        assert alone[0].valid.all()


@pytest.mark.parametrize(
    ("kinds", "expected"), [(("pg", "g", "g"), SupervisedBatch), (("pg", "p", ""), PairBatch), (("pg", "", ""), None)]
)
def test_one_loader_or_none_where_held_out_images_are_alike(kinds, expected):
    loader = module(partly(*kinds), split=held_out(1, 2)).val_dataloader()
    assert loader == [] if expected is None else type(next(iter(loader))) is expected


def test_held_out_images_without_preferences_are_refused_if_they_have_to_have_some():
    data = module(partly("pg", "g", "p"), split=held_out(1, 2), items=partial(PreferenceDataset, unjudged="error"))
    with pytest.raises(DataError, match="1 of 2 records have no preference"):
        data.val_dataloader()


def test_targets_of_gold_are_of_images_that_have_it():
    gold = partial(SupervisedDataset, target="gold")
    data = module(partly("g", "", "g", "p"), split=held_out(1, 2, 3), items=gold)
    assert [batch.ids for batch in data.val_dataloader()] == [["2g"]]
    everything = Splits(np.arange(4, dtype=np.uint32), *([np.empty(0, np.uint32)] * 2), groups=(4, 0, 0))
    train = module(partly("g", "", "g", "p"), split=everything, items=gold).train_data()
    assert (train.indices.tolist(), train.skipped) == ([0, 2], 2)
    with pytest.raises(DataError, match="1 of 1 records have no gold, the first '0'"):
        module(partly("", "p"), split=held_out(0, 1), items=gold).train_data()
    images = SupervisedDataset(partly("g", ""), WHOLE, target="none")
    assert [(item.target == 255).all() and item.valid.all() for item in (images[0], images[1])] == [True, True]


class Recorder(lightning.LightningModule):
    """A network of one weight that writes down what it was shown."""

    def __init__(self, seen):
        super().__init__()
        self.scale, self.seen = torch.nn.Parameter(torch.ones(())), seen

    def training_step(self, batch):
        self.seen.append((self.current_epoch, batch.ids, float(batch.image.sum())))
        return (self.scale * batch.image).mean()

    def validation_step(self, batch):
        return None

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(seen, workers, folder, resume=None, steps=-1, **saving):
    trainer = lightning.Trainer(
        max_epochs=3,
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[ModelCheckpoint(folder, save_top_k=-1, **saving)] if saving else [],
        enable_checkpointing=bool(saving),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(Recorder(seen), datamodule=module(workers=workers), ckpt_path=resume, weights_only=False)
    return trainer


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_was_stopped_shows_the_same_batches_when_resumed(tmp_path, workers):
    # 16 training images in batches of 4: 4 steps an epoch. Checkpoints after each step, and at each epoch's end.
    whole = []
    fit(whole, workers, tmp_path, every_n_train_steps=1, filename="{step}")
    assert [epoch for epoch, _, _ in whole] == [0] * 4 + [1] * 4 + [2] * 4
    assert len({values for _, _, values in whole}) == 12
    for step in (2, 4, 5, 8, 11) if workers == 0 else (4, 6):
        rest = []
        fit(rest, workers, tmp_path / "again", resume=tmp_path / f"step={step}.ckpt")
        assert rest == whole[step:], f"resumed after step {step}"


def test_a_run_resumed_from_an_epochs_end_goes_on_with_the_next(tmp_path):
    whole, rest = [], []
    fit(whole, 0, tmp_path, every_n_epochs=1, filename="{epoch}")
    fit(rest, 0, tmp_path / "again", resume=tmp_path / "epoch=0.ckpt")
    assert rest == whole[4:]


def test_large_images_are_evaluated_in_smaller_batches(monkeypatch):
    data = module()
    whole = data.val_dataloader()
    assert whole.batch_size == data.batch_size == 4
    pixels = data.eval_data(data.splits.val)[0].valid.size
    monkeypatch.setattr(datamodule, "PIXELS", 2 * pixels)
    assert data.val_dataloader().batch_size == 2
    monkeypatch.setattr(datamodule, "PIXELS", 1)
    assert data.val_dataloader().batch_size == 1
    assert data.train_dataloader().batch_size == 4
