"""A data set and candidates that write down who uses them, for tests of mining on a cluster."""

import os
import time

import numpy as np

from segdpo.data.shapes import Shapes

LOG = "log.txt"


def note(what):
    """Add a line to the log in the working directory: what, the process, its machine."""
    node = "here"
    if "RAY_JOB_ID" in os.environ or os.environ.get("RAY_RAYLET_PID"):
        import ray

        node = ray.get_runtime_context().get_node_id()
    with open(LOG, "a") as file:
        file.write(f"{what} {os.getpid()} {node}\n")


class Opened(Shapes):
    """Shapes that say who opens them."""

    def __init__(self, *given, **options):
        super().__init__(*given, **options)
        note("open")


def masks(image, rng):
    """Take a while, and threshold the image where the record's random numbers say."""
    note("mine")
    time.sleep(0.05)
    return np.stack([image.mean(-1) > level for level in rng.uniform(60, 200, 4)])
