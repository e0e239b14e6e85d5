"""Scores worked out pixel by pixel in float64 NumPy: slow, plain, and independent of the code under test."""

import numpy as np
from scipy.special import log_softmax


def pixel_quantity(logits, label, quantity):
    """log p or log p/(1−p) of a class from one pixel's logits; one channel is a sigmoid."""
    if len(logits) == 1:
        logits = np.array([0.0, logits[0]])
    log_p = log_softmax(logits)[label]
    if quantity == "log_likelihood":
        return log_p
    return (
        log_p
        - log_softmax(logits)[np.arange(len(logits)) != label].max()
        - np.log(
            np.exp(
                log_softmax(logits)[np.arange(len(logits)) != label]
                - log_softmax(logits)[np.arange(len(logits)) != label].max()
            ).sum()
        )
    )


def in_region(region, chosen, rejected, width=3):
    """Which pixels of one pair the region holds; a band by looking at every window."""
    if region == "image":
        return np.ones(chosen.shape, bool)
    if region == "disagreement":
        return chosen != rejected
    inside = np.zeros(chosen.shape, bool)
    for mask in (chosen, rejected):
        for index in np.ndindex(mask.shape):
            window = mask[tuple(slice(max(0, i - width), i + width + 1) for i in index)]
            inside[index] |= len(np.unique(window[window != 255])) > 1
    return inside


def pair_scores(logits, chosen, rejected, valid, image_index, quantity, region, reduction):
    """Return (s⁺, s⁻) of every pair as float64 arrays."""
    result = []
    for pair, image in enumerate(image_index):
        y = (chosen[pair], rejected[pair])
        counted = valid[image] & (y[0] != 255) & (y[1] != 255) & in_region(region, *y)
        pixels = [tuple(index) for index in np.argwhere(counted)]
        weights = dict.fromkeys(pixels, 1.0)
        if reduction == "mean":
            weights = {index: 1.0 / len(pixels) for index in pixels}
        if reduction == "class_balanced":
            classes, counts = np.unique([y[0][index] for index in pixels], return_counts=True)
            area = dict(zip(classes.tolist(), counts.tolist(), strict=True))
            weights = {index: 1.0 / (len(area) * area[int(y[0][index])]) for index in pixels}
        result.append(
            [
                sum(
                    weights[index] * pixel_quantity(logits[(image, slice(None), *index)], int(mask[index]), quantity)
                    for index in pixels
                )
                for mask in y
            ]
        )
    return np.array(result, np.float64).T.reshape(2, -1)
