"""The Trainer of a configuration."""

import pytest
from small import SMALL, composed

from segdpo.recipes.fitting import make_trainer


@pytest.mark.parametrize(
    ("callbacks", "expected"),
    [
        (["callbacks=none"], []),
        (["callbacks.best=null", "callbacks.last=null"], []),  # as in the tables: the others stay
        (["callbacks=last"], ["LastCheckpoint"]),
    ],
)
def test_without_callbacks_that_save_checkpoints_there_are_none(callbacks, expected, tmp_path):
    trainer = make_trainer(composed(*SMALL, "logger=none", *callbacks, folder=tmp_path), [])
    assert [type(one).__name__ for one in trainer.checkpoint_callbacks] == expected
