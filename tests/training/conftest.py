"""What all tests of training share; tests/training/callbacks sees it too."""

from tiny_training import data, dpo, fit, hinge, network, noise, sgd

__all__ = ["data", "dpo", "fit", "hinge", "network", "noise", "sgd"]
