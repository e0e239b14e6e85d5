"""Records mined in memory: the pairs that the judge would make, the same whatever is asked for first."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from toy_records import Listed, record

from segdpo.data.batches import PairBatch, RankingBatch
from segdpo.data.datasets import PreferenceDataset
from segdpo.data.record import RecordInfo
from segdpo.data.transforms import Pipeline
from segdpo.models import trust
from segdpo.preferences.candidates import existing
from segdpo.preferences.judges import iou
from segdpo.preferences.mining import Mined
from segdpo.preferences.questions import all_pairs, best_worst

CONF = Path(__file__).parents[2] / "conf"
# Gold has 2 rows, the masks have 0, 1, 2: IoU 0, 1/2, 1.
TOY = record("toy", pairs=((0, 1),))


def mined(*records, questions=best_worst, **options):
    return Mined(Listed(list(records)), partial(existing), iou, questions, **options)


def configured(*overrides):
    with initialize_config_dir(str(CONF), version_base=None):
        config = compose(overrides=["+data=shapes_judged", "data.source.count=24", *overrides])
    return OmegaConf.merge({"seed": 0}, config)


def same(one, other):
    return (
        one.id == other.id
        and one.pairs == other.pairs
        and one.meta == other.meta
        and np.array_equal(one.image, other.image)
        and np.array_equal(one.masks, other.masks)
    )


def test_the_best_mask_over_the_worst():
    source = mined(TOY)
    assert [(pair.chosen, pair.rejected) for pair in source[0].pairs] == [(2, 0)]
    assert source[0].ranking == (2, 1, 0)
    assert source.describe(0) == RecordInfo("toy", pairs=1, ranking=3)
    assert (len(source), source.classes) == (1, ("background", "object"))


def test_a_configuration_saved_before_the_options_were_renamed_opens():
    saved = {
        "_target_": "segdpo.data.mined.Mined",
        "source": {"_target_": "segdpo.data.shapes.Shapes", "count": 3},
        "mask_source": {"_target_": "segdpo.pairs.candidates.existing", "_partial_": True},
        "judge": {"_target_": "segdpo.pairs.judges.iou", "_partial_": True},
        "rule": {"_target_": "segdpo.pairs.preferences.best_worst", "_partial_": True, "min_gap": 0.0},
        "ranking": False,
        "keep": False,
    }
    source = trust.build_named(saved, Path("config.yaml"), "data", table=trust.EVALUATION)
    assert isinstance(source, Mined)
    assert same(source[0], instantiate(configured("data.source.count=3").data)[0])


def test_a_record_without_gold_is_skipped_and_says_why():
    source = mined(TOY, record("blind", gold=False))
    blind = source[1]
    # The pair that it came with is not this judge's.
    assert (blind.pairs, blind.ranking, len(blind.masks)) == ((), (), 3)
    assert blind.meta["unjudged"].startswith("cannot be judged: ")
    items = PreferenceDataset(source, Pipeline())
    assert (len(items), items.skipped) == (1, 1)
    with pytest.raises(ValueError, match="no preference"):
        PreferenceDataset(source, Pipeline(), unjudged="error")


def test_a_record_whose_masks_are_all_alike_says_so():
    alike = mined(replace(TOY, masks=TOY.masks[[1, 1]], mask_names=("a", "b"), pairs=()), questions=all_pairs)[0]
    assert alike.meta["unjudged"] == "all candidates are the same"


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("masks", ["existing", "corruptions", "annotators"])
def test_records_do_not_depend_on_the_order_of_access(keep, masks):
    options = (f"candidates@data.candidates={masks}", f"data.keep={keep}")
    forth, back = instantiate(configured(*options).data), instantiate(configured(*options).data)
    backwards = {index: back[index] for index in reversed(range(12))}
    assert all(same(forth[index], backwards[index]) for index in range(12))
    assert all(forth.describe(index).pairs == len(forth[index].pairs) for index in range(12))
    assert (forth[0] is forth[0]) is keep


def test_another_seed_draws_other_corruptions():
    one, other = (
        instantiate(configured("candidates@data.candidates=corruptions", f"data.seed={seed}").data) for seed in (0, 1)
    )
    assert not any(np.array_equal(one[index].masks, other[index].masks) for index in range(4))


@pytest.mark.parametrize("workers", [0, 2])
def test_preferences_on_the_embedded_set_with_no_file(workers):
    config = configured("+transforms=flips", "+datamodule=preference", f"datamodule.workers={workers}")
    data = instantiate(config.datamodule)
    batches = list(data.train_dataloader())
    assert all(type(batch) is PairBatch for batch in batches)
    found = {name: batch for batch in batches for name in batch.ids}
    assert set(found) <= {f"shapes-0-{index:05d}" for index in range(24)}
    assert len(found) == len(data.splits.train) // 8 * 8  # every record has its pair
    batch = batches[0]
    assert batch.chosen.shape == batch.rejected.shape == (8, 64, 64)
    assert sorted(batch.image_index.tolist()) == list(range(8))
    # Chosen is nearer to gold, in the view that the network sees.
    for chosen, rejected, number in zip(batch.chosen, batch.rejected, batch.image_index, strict=True):
        gold = batch.gold[number] == 1
        better, worse = (((mask == 1) & gold).sum() / ((mask == 1) | gold).sum() for mask in (chosen, rejected))
        assert better > worse


def test_rankings_on_the_embedded_set():
    config = configured("+transforms=flips", "+datamodule=ranking", "datamodule.items.length=3")
    batch = next(iter(instantiate(config.datamodule).train_dataloader()))
    assert type(batch) is RankingBatch
    assert batch.image.dtype == torch.float32
