"""An epoch's order: a permutation, the same for equal (seed, epoch), shared between processes, taken up again."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segdpo.data.sampling import Draw, EpochLoader, EpochSampler, Waits


def items(sampler):
    return [draw.item for draw in sampler]


@settings(deadline=None, max_examples=60)
@given(count=st.integers(1, 40), ranks=st.integers(1, 4), epoch=st.integers(0, 5), shuffle=st.booleans())
def test_processes_share_an_epoch(count, ranks, epoch, shuffle):
    if shuffle and count < ranks:
        return
    samplers = [EpochSampler(count, seed=3, shuffle=shuffle, rank=rank, ranks=ranks) for rank in range(ranks)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    drawn = [items(sampler) for sampler in samplers]
    assert [len(part) for part in drawn] == [len(sampler) for sampler in samplers]
    together = sorted(number for part in drawn for number in part)
    assert len(set(together)) == len(together)
    if shuffle:
        assert {len(part) for part in drawn} == {count // ranks}
    else:
        assert together == list(range(count))


def test_order_depends_on_seed_and_epoch_alone():
    sampler = EpochSampler(100, seed=1)
    first = items(sampler)
    assert sorted(first) == list(range(100))
    assert items(sampler) == first
    sampler.set_epoch(1)
    second = items(sampler)
    assert second != first
    assert items(EpochSampler(100, seed=2)) != first
    sampler.set_epoch(0)
    assert items(sampler) == first
    other = EpochSampler(100, seed=1)
    other.set_epoch(1)
    assert items(other) == second


def test_draws_carry_their_epoch():
    sampler = EpochSampler(2, shuffle=False)
    sampler.set_epoch(7)
    assert list(sampler) == [Draw(0, 7), Draw(1, 7)]


def test_order_is_small():
    order = EpochSampler(1000).order()
    assert order.dtype == np.uint32
    assert order.nbytes == 4000


def test_position_is_used_once():
    sampler = EpochSampler(10, seed=1)
    sampler.set_epoch(2)
    whole = items(sampler)
    sampler.resume(2, position=4)
    sampler.set_epoch(2)  # what Lightning does after a resume
    assert items(sampler) == whole[4:]
    assert items(sampler) == whole


@pytest.mark.parametrize(
    ("count", "options", "words"),
    [
        (0, {}, "1 .*0"),
        (3, {"ranks": 4, "rank": 0}, "4 .*3"),
        (3, {"rank": 1}, "rank.*0.*1"),
    ],
)
def test_impossible_requests(count, options, words):
    with pytest.raises(ValueError, match=words):
        EpochSampler(count, **options)


class Numbers:
    def __getitem__(self, draw):
        return 100 * draw.epoch + draw.item

    def __len__(self):
        return 10


def loader(seed=0, workers=0, **options):
    # Batches of 3 of 10 items, the last one left out.
    sampler = EpochSampler(10, seed=seed)
    return EpochLoader(Numbers(), batch_size=3, sampler=sampler, drop_last=True, num_workers=workers, **options)


def run(loader, epochs):
    found = []
    for epoch in epochs:
        loader.order.set_epoch(epoch)
        found += [batch.tolist() for batch in loader]
    return found


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 2, 3, 4, 6])
def test_a_loader_goes_on_where_it_was_saved(stop, workers):
    whole = run(loader(), range(3))
    saved, seen = loader(workers=workers), []
    for epoch in range(3):
        saved.order.set_epoch(epoch)
        for batch in saved:
            seen.append(batch.tolist())
            if len(seen) == stop:
                break
        if len(seen) == stop:
            break
    state = saved.state_dict()
    resumed = loader(workers=workers)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    epoch = state["epoch"]
    rest = [batch.tolist() for batch in resumed] + run(resumed, range(epoch + 1, 3))
    assert seen + rest == whole


def test_other_data_or_another_seed_is_refused():
    state = loader().state_dict()
    with pytest.raises(ValueError, match=r"seed 0.* 1"):
        loader(seed=1).load_state_dict(state)


def test_a_loader_needs_its_sampler():
    with pytest.raises(TypeError, match="sampler=EpochSampler"):
        next(iter(EpochLoader(Numbers())))


def test_an_epoch_that_a_trainer_counts_but_never_shows_is_shown():
    """After a resume at an epoch's end Lightning sets epochs 2, 3, 4 … but iterates from its second setting on."""
    sampler = EpochSampler(6, seed=3)
    sampler.resume(2, 0)
    shown = []
    for counted in (2, 3, 4):
        sampler.set_epoch(counted)
        if counted > 2:
            shown.append(list(sampler))
    expected = []
    for epoch in (2, 3):
        plain = EpochSampler(6, seed=3)
        plain.set_epoch(epoch)
        expected.append(list(plain))
    assert shown == expected


def test_a_training_that_waits_for_its_images_says_so_once(caplog):
    busy, waiting, late, short = Waits(), Waits(), Waits(), Waits()
    for _ in range(30):
        busy.add(4.0, 9.0)
        waiting.add(4.0, 5.0)
        short.add(0.1, 0.1)
    assert (busy.warned, waiting.warned, short.warned) == (False, True, False)
    (found,) = caplog.messages
    assert "12 of the first 15 seconds" in found
    for seconds in [0.0] * 20 + [50.0] * 3:
        late.add(seconds, seconds)
    assert not late.warned


def test_waiting_is_the_time_until_a_batch_comes(monkeypatch):
    clock = iter([0.0, 3.0, 4.0, 9.0, 10.0])
    monkeypatch.setattr("segdpo.data.sampling.time.perf_counter", lambda: next(clock))
    waits = Waits()
    assert list(waits.timed("ab")) == ["a", "b"]
    assert (waits.steps, waits.waited, waits.seconds) == (2, 8.0, 10.0)
