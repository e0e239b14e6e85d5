"""A data set and candidates that write down who uses them, for tests of mining on a cluster."""

import os
import time

import numpy as np

from segdpo.data.shapes import Shapes

LOG = "log.txt"


def place():
    """Return the node and the job of Ray that this process works for."""
    if "RAY_JOB_ID" not in os.environ and "RAY_RAYLET_PID" not in os.environ:
        return "here", "none"
    import ray

    context = ray.get_runtime_context()
    return context.get_node_id(), context.get_job_id()


def note(what):
    """Add a line to the log in the working directory: what, the process, its node, its job."""
    node, job = place()
    with open(LOG, "a") as file:
        file.write(f"{what} {os.getpid()} {node} {job}\n")


def lines():
    """Return the words of each line of the log."""
    with open(LOG) as file:
        return [line.split() for line in file]


class Opened(Shapes):
    """Shapes that say who opens them."""

    def __init__(self, *given, **options):
        super().__init__(*given, **options)
        note("open")


def masks(image, rng):
    """Threshold the image where the record's random numbers say; take a while, on Ray until two nodes have begun."""
    note("mine")
    node, job = place()
    while node != "here" and len({words[2] for words in lines() if words[3] == job}) < 2:
        time.sleep(0.05)
    time.sleep(0.05)
    return np.stack([image.mean(-1) > level for level in rng.uniform(60, 200, 4)])
