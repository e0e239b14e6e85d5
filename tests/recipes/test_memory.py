"""After a run nothing of it is alive, also after one that failed in a sweep."""

import gc
import weakref

import pytest
from small import SMALL, composed

from segdpo.recipes import memory
from segdpo.recipes.memory import freed_at_end
from segdpo.recipes.run import run_recipe
from segdpo.training import PreferenceTask


def remember(found, task):
    """Add weak references to what a run made."""
    trainer = task.trainer
    made = {
        "trainer": trainer,
        "task": task,
        "policy": task.policy,
        "optimizer": trainer.optimizers[0],
        "data": trainer.datamodule,
        "source": trainer.datamodule.source,
        "items": trainer.train_dataloader.dataset,
    }
    found |= {name: weakref.ref(one) for name, one in made.items()}


@pytest.fixture
def no_chance():
    """Without Python's own collections, which would free cycles at some time or other."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.untraced
@pytest.mark.usefixtures("no_chance")
def test_nothing_of_a_run_is_alive_after_it(tmp_path, monkeypatch):
    found = {}
    # Not a callback: Lightning binds those to the task, and this test would keep one.
    monkeypatch.setattr(PreferenceTask, "on_train_end", lambda task: remember(found, task), raising=False)
    run_recipe(composed(*SMALL, "trainer.max_steps=1", folder=tmp_path))
    assert len(found) == 7
    assert [name for name, one in found.items() if one() is not None] == []


class Network:
    """Something large that refers to itself."""

    def __init__(self):
        self.me = self


@pytest.mark.usefixtures("no_chance")
@pytest.mark.parametrize("sweep", [True, False])
def test_the_error_of_a_run_in_a_sweep_keeps_nothing_alive(monkeypatch, sweep):
    monkeypatch.setattr(memory, "in_sweep", lambda: sweep)
    alive = []

    def build():
        network = Network()
        alive.append(weakref.ref(network))
        raise KeyError(network.me is network)

    @freed_at_end()
    def run():
        try:
            build()
        except KeyError as error:
            raise ValueError("a network") from error

    with pytest.raises(ValueError, match="a network") as caught:
        run()
    # Elsewhere a debugger may look at the variables.
    assert (alive[0]() is None) == sweep
    assert caught.value.__cause__.args == (True,)
