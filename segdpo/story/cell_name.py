"""The folder of each run of a sweep, named after what was chosen for it.

A number would change whenever a loss joins the sweep, and a run that is there already could not be told from another.
"""

import re
from hashlib import sha256

from omegaconf import OmegaConf

LONGEST = 120
UNSAFE = re.compile(r"[^A-Za-z0-9._=+-]")


def cell_name(overrides: str) -> str:
    """Return a folder's name for the overrides: short, without "/", and different for different ones.

    >>> cell_name("loss=dpo__seed=0")
    'loss=dpo__seed=0'
    >>> cell_name("datamodule/split=folds")
    'datamodule-split=folds-34108c1c'
    """
    name = UNSAFE.sub("-", overrides)
    if name == overrides and len(name) <= LONGEST:
        return name or "default"
    return f"{name[:LONGEST]}-{sha256(overrides.encode()).hexdigest()[:8]}"


# Importing this is what lets conf/train.yaml say ${cell_name:…}, also in the processes that a launcher starts.
OmegaConf.register_new_resolver("cell_name", cell_name, replace=True)
