"""Scores for the tests of losses, and a check of a term against values computed in NumPy."""

import inspect
from dataclasses import dataclass

import pytest
import torch

from segdpo import PairScores

try:
    import numpy as np
except ModuleNotFoundError:  # make test-core
    np = None

# Dyadic numbers, so that float32 holds them and their differences exactly and every error found is the loss's own.
ORDINARY = [
    # s⁺_θ,  s⁻_θ,  s⁺_ref, s⁻_ref
    (-0.25, -1.5, -0.5, -1.0),  # the chosen mask gained, the rejected one lost
    (-2.0, -0.75, -1.25, -1.5),  # the chosen mask fell below the reference
    (-0.5, -0.5, -3.0, -0.125),  # the policy likes both masks the same
    (-1.0, -1.0, -1.0, -1.0),  # all four equal
    (-0.375, -2.25, -0.375, -2.25),  # policy = reference
]
HUGE_LIKELIHOODS = [(-1e4, -0.5, -0.5, -1e4), (-0.5, -1e4, -1e4, -0.5), (-1e4, -1e4, -1e4, -1e4)]
ODDS = [(12.0, -3.5, 2.0, -1.0), (-7.0, 9.5, 0.0, 0.0), (1e4, -1e4, 0.0, 0.0), (-1e4, 1e4, 1e4, -1e4)]


@dataclass(frozen=True)
class FourScores:
    """s⁺ and s⁻ under the policy and the reference: four arrays, one entry a pair."""

    chosen: "np.ndarray"
    rejected: "np.ndarray"
    reference_chosen: "np.ndarray"
    reference_rejected: "np.ndarray"

    @classmethod
    def of(cls, rows):
        return cls(*np.array(rows, dtype=np.float64).T)

    @property
    def r_chosen(self):
        """r⁺ = s⁺_θ − s⁺_ref."""
        return self.chosen - self.reference_chosen

    @property
    def r_rejected(self):
        """r⁻ = s⁻_θ − s⁻_ref."""
        return self.rejected - self.reference_rejected

    @property
    def h(self):
        """What DPO pushes up: r⁺ − r⁻."""
        return self.r_chosen - self.r_rejected

    def tensors(self, dtype=torch.float64, grad=False):
        """The four numbers as leaf tensors, in the order of the fields."""
        arrays = (self.chosen, self.rejected, self.reference_chosen, self.reference_rejected)
        return [torch.tensor(array, dtype=dtype, requires_grad=grad) for array in arrays]

    def pairs(self, dtype=torch.float64):
        """Policy and reference as the losses read them."""
        chosen, rejected, reference_chosen, reference_rejected = self.tensors(dtype)
        return PairScores(chosen, rejected), PairScores(reference_chosen, reference_rejected)


@pytest.fixture
def four_scores():
    """Build FourScores from rows (s⁺_θ, s⁻_θ, s⁺_ref, s⁻_ref)."""
    return FourScores.of


@pytest.fixture
def ordinary():
    return FourScores.of(ORDINARY)


@pytest.fixture
def likelihoods():
    """Scores that a log-likelihood can take: never above 0."""
    return FourScores.of(ORDINARY + HUGE_LIKELIHOODS)


@pytest.fixture
def scores():
    """Scores of either quantity, ordinary and ugly."""
    return FourScores.of(ORDINARY + HUGE_LIKELIHOODS + ODDS)


@pytest.fixture(params=[(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["float64", "float32"])
def agrees(request):
    """Compare a term with its expected values in both precisions; its gradients must be finite too.

    `absolute` is the size of numbers that cancel inside the formula, where only absolute accuracy can be expected.
    """
    dtype, tolerance = request.param

    def check(term, four, expected, absolute=0.0):
        leaves = four.tensors(dtype, grad=True)
        given = {"policy": PairScores(*leaves[:2]), "reference": PairScores(*leaves[2:])}
        values = term(**{name: given[name] for name in given if name in inspect.signature(term).parameters})
        assert values.dtype == dtype
        # 1e-30: float32 has no numbers for what is left of −log σ(100).
        atol = max(tolerance * absolute, 1e-30)
        np.testing.assert_allclose(values.detach().double().numpy(), expected, rtol=tolerance, atol=atol)
        values.sum().backward()
        for leaf in leaves:
            assert leaf.grad is None or leaf.grad.isfinite().all(), f"gradient {leaf.grad.tolist()}"

    return check


@pytest.fixture
def minus_log_sigmoid():
    """−log σ(x) = −log 1/(1 + e^{−x}) = log(e^0 + e^{−x})."""
    return lambda x: np.logaddexp(0.0, -np.asarray(x, dtype=np.float64))
