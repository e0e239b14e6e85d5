"""Training with torch.use_deterministic_algorithms, as a Trainer with deterministic=true has it."""

import pytest
import torch

from segdpo import score_pairs


@pytest.fixture
def _deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_deterministic")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shared", [False, True])
def test_the_gradient_of_the_margin_is_the_plain_paths(channels, shared):
    logits = torch.randn(2, channels, 5, 7, requires_grad=True)
    pairs = 3 if shared else 2
    chosen, rejected = torch.randint(0, max(2, channels), (2, pairs, 5, 7), dtype=torch.uint8)
    options = {"image_index": torch.tensor([0, 1, 1])} if shared else {}
    gradients = []
    for backend in ("auto", "reference"):
        scores = score_pairs(logits, chosen, rejected, backend=backend, **options)
        gradients.append(torch.autograd.grad(scores.margin.sum(), logits)[0])
    torch.testing.assert_close(gradients[0], gradients[1])
