"""A tiny network, noise and a short way to train, as in tests/training."""

from tiny_training import data, fit, network, sgd

__all__ = ["data", "fit", "network", "sgd"]
