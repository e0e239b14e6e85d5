"""Candidate masks drawn from a network's own distribution over masks: what training online judges.

The kinds of source and their options are explained in candidates.py, the distribution in policies/pixel_policy.py.
"""

import numpy as np
import torch

from segdpo.checks import check_range
from segdpo.pairs.candidates_value import Candidates
from segdpo.pairs.prediction import Predict, logits_of
from segdpo.pairs.record import Record
from segdpo.policies.sampling import sample


def samples(
    record: Record,
    rng: np.random.Generator,
    *,
    predict: Predict,
    count: int = 8,
    temperature: float = 1.0,
    smoothness: float = 0.0,
) -> Candidates:
    """Draw `count` masks whose pixels have the probabilities softmax(z / temperature), or σ(z / temperature).

    `smoothness` is the standard deviation, in pixels, of the Gaussian that the noise is smoothed with: neighbours then
    err together, as contours do. At 0 each pixel is drawn on its own, and at temperature 1 the masks are the policy's.
    """
    check_range("count", count, least=1)
    logits = torch.tensor(logits_of(predict, record.image[None]))
    generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
    masks = sample(logits, count, temperature=temperature, smoothness=smoothness, generator=generator)
    return Candidates(masks.numpy(), tuple(f"samples-{k}" for k in range(count)))
