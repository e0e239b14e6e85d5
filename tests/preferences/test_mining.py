"""Mining in memory and to disk: what is mined, that it resumes exactly, and data sets that are mined when read."""

import json
import os
import signal
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from toy_records import record

from segdpo.data.batches import PairBatch, RankingBatch
from segdpo.data.datasets import PreferenceDataset
from segdpo.data.formats.folder import FolderDataset, write_folder
from segdpo.data.formats.pack import PackDataset, PackWriter
from segdpo.data.record import Candidates, Pair, Record, RecordInfo
from segdpo.data.shapes import Shapes
from segdpo.data.transforms import Pipeline
from segdpo.files import DataError
from segdpo.models import EVALUATION, build_named
from segdpo.preferences import judges, mining, questions, selection
from segdpo.preferences.candidates import existing
from segdpo.preferences.corruptions import corrupt
from segdpo.preferences.journal import Journal, Miner, journal_path, run_mining
from segdpo.preferences.judges import iou
from segdpo.preferences.mining import Mined, Mining, mine_record
from segdpo.preferences.questions import all_pairs, best_worst
from segdpo.preferences.selection import everything

MINING = Mining(partial(corrupt, count=4), judges.iou, questions.best_worst)
SETTINGS = {"recipe": "corruptions, best over worst"}


def shapes(count=10):
    return Shapes(count, size=32, masks=None)


class Listed:
    """A data set of given records; an exception in the list stands for a record that cannot be read."""

    classes = ("background", "object")

    def __init__(self, *records):
        self.records = records

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        if isinstance(self.records[index], Exception):
            raise self.records[index]
        return self.records[index]

    def describe(self, index):
        record = self.records[index]
        return RecordInfo(f"broken-{index}" if isinstance(record, Exception) else record.id)


def record_with(*rows, name="a", gold=None):
    masks = np.array(rows, np.uint8).reshape(len(rows), 1, 4)
    gold = None if gold is None else np.array(gold, np.uint8)[None]
    return Record(name, np.zeros((1, 4, 3), np.uint8), masks, tuple(f"m{k}" for k in range(len(rows))), gold=gold)


def same(first, second):
    assert (first.id, first.mask_names, first.pairs, first.ranking, first.meta) == (
        second.id,
        second.mask_names,
        second.pairs,
        second.ranking,
        second.meta,
    )
    np.testing.assert_array_equal(first.masks, second.masks)
    np.testing.assert_array_equal(first.image, second.image)


def test_a_record_is_judged_and_paired():
    record = record_with([1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0], gold=[1, 1, 0, 0])
    outcome = mine_record(record, replace(MINING, candidates=existing))
    assert outcome.reason == ""
    mined = outcome.record
    assert mined.mask_names == ("m0", "m1", "m3")
    assert mined.pairs == (Pair(2, 1),)
    assert mined.ranking == (2, 0, 1)
    assert mined.meta == {"duplicates_dropped": "1", "scores": "0.666667 0.5 1"}
    assert outcome.diversity["m0"].best_quality == pytest.approx(2 / 3)
    kept = mine_record(record, replace(MINING, candidates=existing, keep_duplicates=True)).record
    assert kept.mask_names == ("m0", "m1", "m2", "m3")
    assert kept.pairs == (Pair(3, 1),)
    assert kept.ranking == (3, 0, 2, 1)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (record_with([1, 0, 0, 0], [1, 0, 0, 0], gold=[1, 1, 0, 0]), "all candidates are the same"),
        (record_with(gold=[1, 1, 0, 0]), "no candidate"),
        (record_with([1, 0, 0, 0], [0, 1, 0, 0]), "cannot be judged"),
        (record_with([1, 0, 0, 0], [0, 1, 0, 0], gold=[1, 1, 0, 0]), "no pair to ask about"),
    ],
)
def test_records_without_a_preference_are_skipped_with_the_reason(record, reason):
    outcome = mine_record(record, replace(MINING, candidates=existing))
    assert outcome.record is None
    assert outcome.reason == reason


def test_a_record_that_cannot_be_read_is_a_skip_and_a_wrong_setting_is_not():
    good = record_with([1, 0, 0, 0], [1, 1, 0, 0], gold=[1, 1, 0, 0])
    source = Listed(DataError("a.png is cut short", "damaged"), good)
    results = [Miner(source, replace(MINING, candidates=existing))(number) for number in (0, 1)]
    assert [(one.line.id, one.line.reason) for one in results] == [("broken-0", "unreadable: damaged"), ("a", "")]
    assert [one.packed is None for one in results] == [True, False]
    wrong = replace(MINING, candidates=existing, questions=partial(questions.best_worst, min_gap=-1))
    with pytest.raises(ValueError, match="min_gap"):
        Miner(source, wrong)(1)


def test_what_is_mined_depends_on_seed_and_record_alone():
    straight = [Miner(shapes(), MINING)(number) for number in range(10)]
    backwards = [Miner(shapes(30), MINING)(number) for number in range(9, -1, -1)][::-1]
    assert [one.packed for one in straight] == [one.packed for one in backwards] != [None] * 10
    assert repr(straight) == repr(backwards)  # NaN equals nothing
    assert Miner(shapes(), replace(MINING, seed=1))(0).packed != straight[0].packed


def mined_of(mining):
    return [mine_record(record, mining).record for record in shapes()]


def test_another_judge_sees_the_same_candidates():
    for first, second in zip(mined_of(MINING), mined_of(replace(MINING, judge=judges.agreement)), strict=True):
        np.testing.assert_array_equal(first.masks, second.masks)


def run(out, source=None, mining=MINING, settings=SETTINGS, selection=everything):
    out.parent.mkdir(exist_ok=True)
    source = source or shapes()
    journal = Journal(journal_path(out), settings)
    writer = PackWriter(out, source.classes, records_per_shard=4)
    return run_mining(source, Miner(source, mining), journal, writer, selection=selection)


def content(out):
    files = [*out.iterdir(), journal_path(out)]
    return {path.name.replace(out.name, "out"): path.read_bytes() for path in files}


def test_the_pack_holds_what_was_mined(tmp_path):
    summary = run(tmp_path / "a")
    pack = PackDataset(tmp_path / "a")
    for stored, mined in zip(pack, mined_of(MINING), strict=True):
        same(stored, mined)
    pairs = sum(pack.describe(index).pairs for index in range(10))
    assert (summary.selected, summary.mined, summary.pairs, summary.skipped) == (10, 10, pairs, {})
    assert summary.masks == sum(len(record.masks) for record in pack)


def killed_at(event, out):
    """Run in another process that kills itself before the `event`-th time it touches a file; tell whether it did."""
    child = os.fork()
    if child == 0:
        left = event

        def kill(name, arguments):
            nonlocal left
            if name in ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate"):
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(kill)
        try:
            run(out)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.untraced
def test_killed_before_any_touch_of_a_file_it_ends_with_the_same_bytes(tmp_path):
    run(tmp_path / "straight")
    expected = content(tmp_path / "straight")
    event = 0
    while killed_at(event, out := tmp_path / f"killed-{event}"):
        killed_at(event // 2, out)  # and a second time, somewhere else
        run(out)
        assert content(out) == expected, event
        event += 1
    assert event > 30
    assert content(out) == expected


def test_a_journal_cut_anywhere_is_mended(tmp_path):
    run(tmp_path / "straight")
    expected = content(tmp_path / "straight")
    journal = expected["out.mining.jsonl"].replace(b'"finished": true', b'"finished": false')
    head = journal.index(b"\n") + 1
    for cut in [*range(head, len(journal), 997), head + 1, len(journal) - 1]:
        out = tmp_path / f"cut-{cut}"
        run(out)
        journal_path(out).write_bytes(journal[:cut])
        run(out)
        assert content(out) == expected, cut


def test_skips_are_counted_once_whatever_the_interruptions(tmp_path):
    good = record_with([1, 0, 0, 0], [1, 1, 0, 0], gold=[1, 1, 0, 0])
    tied = [record_with([1, 0, 0, 0], [0, 1, 0, 0], gold=[1, 1, 0, 0], name=f"tied-{k}") for k in range(3)]
    source = Listed(tied[0], DataError("x.png is cut short", "damaged"), good, *tied[1:])
    mining = replace(MINING, candidates=existing)
    for _ in range(2):
        summary = run(tmp_path / "a", source, mining)
        assert (summary.selected, summary.mined) == (5, 1)
        assert summary.skipped == {"no pair to ask about": 3, "unreadable: damaged": 1}
        assert summary.examples == {"no pair to ask about": "tied-0", "unreadable: damaged": "x.png is cut short"}
    assert [record.id for record in PackDataset(tmp_path / "a")] == ["a"]


def test_nothing_mined_is_an_error_that_says_why(tmp_path):
    source = Listed(record_with([1, 0, 0, 0], [0, 1, 0, 0]))
    with pytest.raises(DataError, match=r"none of 1 has one: 1 × cannot be judged .*'a' has no gold"):
        run(tmp_path / "a", source, replace(MINING, candidates=existing))


def test_one_id_twice_is_an_error(tmp_path):
    one = record_with([1, 0, 0, 0], [1, 1, 0, 0], gold=[1, 1, 0, 0])
    with pytest.raises(DataError, match="records 0 and 1 are both 'a'"):
        run(tmp_path / "a", Listed(one, one), replace(MINING, candidates=existing))


def test_other_settings_do_not_go_on_with_a_run(tmp_path):
    run(tmp_path / "a", settings={"judge": {"name": "iou"}, "seed": 0})
    with pytest.raises(DataError, match=r"judge\.name was 'iou' and is 'dice'"):
        run(tmp_path / "a", settings={"judge": {"name": "dice"}, "seed": 0})
    journal_path(tmp_path / "a").write_text("no journal\n")
    with pytest.raises(DataError, match="Expected the journal of a mining run"):
        run(tmp_path / "a")


def test_images_keep_their_files(tmp_path):
    write_folder(tmp_path / "folder", Shapes(3, size=32), shapes().classes)
    image = cv2.imread(str(tmp_path / "folder/images/shapes-0-00001.png"), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(tmp_path / "folder/images/shapes-0-00001.png"), image, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    source = FolderDataset(tmp_path / "folder")
    run(tmp_path / "a", source, replace(MINING, candidates=existing))
    pack = PackDataset(tmp_path / "a")
    for number in range(3):
        assert pack.image_file(number) == source.image_file(number)


def test_the_selection_is_made_once_and_kept(tmp_path):
    chosen = partial(selection.at_random, budget=4)
    summary = run(tmp_path / "a", selection=chosen)
    ids = [record.id for record in PackDataset(tmp_path / "a")]
    assert ids == [shapes().describe(number).id for number in sorted(chosen(shapes()))]
    assert (summary.selected, summary.mined) == (4, 4)

    def another(records):
        raise AssertionError

    assert run(tmp_path / "a", selection=another).mined == 4


def test_more_records_than_a_run_can_resume_are_refused_before_any_work(tmp_path):
    with pytest.raises(DataError, match=r"at most 1000000 records .* but 2000001 .* selection\.parts=3"):
        run(tmp_path / "a", selection=lambda records: list(range(2_000_001)))


def test_the_journal_says_what_became_of_each_record(tmp_path):
    run(tmp_path / "a")
    head, *lines = [json.loads(line) for line in journal_path(tmp_path / "a").read_text().splitlines()]
    assert head == {"settings": SETTINGS, "selected": list(range(10)), "finished": True}
    assert [line["id"] for line in lines] == [record.id for record in PackDataset(tmp_path / "a")]
    assert all(line["pairs"] == 1 and line["reason"] == "" for line in lines)


def test_a_source_with_one_mask_leaves_nothing_to_prefer(tmp_path):
    one = Candidates(np.ones((1, 32, 32), np.uint8), ("one",))
    outcome = mine_record(shapes()[0], replace(MINING, candidates=lambda record, rng: one))
    assert outcome.reason == "all candidates are the same"


CONF = Path(__file__).parents[2] / "conf"
# Gold has 2 rows, the masks have 0, 1, 2: IoU 0, 1/2, 1.
TOY = record("toy", pairs=((0, 1),))


def mined(*records, questions=best_worst, **options):
    return Mined(Listed(*records), partial(existing), iou, questions, **options)


def configured(*overrides):
    with initialize_config_dir(str(CONF), version_base=None):
        config = compose(overrides=["+data=shapes_judged", "data.source.count=24", *overrides])
    return OmegaConf.merge({"seed": 0}, config)


def same_record(one, other):
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


def test_what_is_too_large_to_be_kept_is_read_again_with_the_same_preferences(monkeypatch):
    records = [record(name, pairs=((0, 1),)) for name in ("a", "b", "c")]
    kept = mined(*records)
    # Room for one record: an image, three masks and gold.
    one = kept[0].image.nbytes + kept[0].masks.nbytes + kept[0].gold.nbytes
    monkeypatch.setattr(mining, "KEPT_BYTES", 2 * one - 1)
    asked = []

    def judge(found, masks, rng):
        asked.append(found.id)
        return iou(found, masks, rng)

    source = Mined(Listed(*records), partial(existing), judge, best_worst)
    for _ in range(2):
        assert all(same_record(source[number], kept[number]) for number in range(3))
    assert asked == ["a", "b", "c"]
    assert (source[0] is source[0], source[1] is source[1]) == (True, False)
    assert source.describe(2) == kept.describe(2)


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
    source = build_named(saved, Path("config.yaml"), "data", table=EVALUATION)
    assert isinstance(source, Mined)
    assert same_record(source[0], instantiate(configured("data.source.count=3").data)[0])


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
    assert all(same_record(forth[index], backwards[index]) for index in range(12))
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
