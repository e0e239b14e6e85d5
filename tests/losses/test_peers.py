"""The same numbers through TRL's own code: its DPO, CPO, SimPO and ORPO arithmetic agrees with ours to 1e-6.

TRL keeps its formulas inside methods of trainers, which want models, datasets and tokenizers. The methods are called
unbound, with a stand-in for the trainer that has just what they read:

- `DPOTrainer._compute_loss` takes per-token log-probs from a model's output. The stand-in model answers with tokens
  whose log-probs add up to the chosen four numbers; reference log-probs are passed as precomputed. Only the mean
  over the batch comes out, so totals are compared, and gradients at the four numbers.
- `CPOTrainer.cpo_loss` and `ORPOTrainer.odds_ratio_loss` take log-probs of whole completions.

TRL has no bdpo, dpop, arpo, Plackett–Luce, linear, log-sum-exp or hinge anchor; those rest on the golden values alone.
"""

from collections import defaultdict
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from segdpo import Anchor, PairScores, PreferenceLoss
from segdpo.losses import anchors, objectives

TOKENS = 4
ACCELERATOR = SimpleNamespace(device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x)


@pytest.fixture(scope="module")
def dpo_trainer():
    return pytest.importorskip("trl.trainer.dpo_trainer").DPOTrainer


@pytest.fixture(scope="module")
def cpo_trainer():
    return pytest.importorskip("trl.experimental.cpo").CPOTrainer


@pytest.fixture(scope="module")
def orpo_trainer():
    return pytest.importorskip("trl.experimental.orpo").ORPOTrainer


def random_leaves(pairs, scale=1.0):
    """s⁺_θ, s⁻_θ, s⁺_ref, s⁻_ref: log-likelihoods between 0 and −5·scale."""
    generator = torch.Generator().manual_seed(pairs)
    numbers = -scale * (0.02 + 5 * torch.rand(4, pairs, generator=generator, dtype=torch.float64))
    return [row.clone().requires_grad_(index < 2) for index, row in enumerate(numbers)]


def dpo_loss_of_trl(trainer, leaves, loss_types, *, beta, label_smoothing=0.0, loss_weights=None):
    """Call `DPOTrainer._compute_loss` on completions of TOKENS tokens whose log-probs add up to the four numbers."""
    # Unequal tokens; their order in a completion must not matter to any of these losses.
    shares = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    completions = torch.cat(leaves[:2])  # TRL's batch: all chosen, then all rejected
    per_token = completions[:, None] * shares
    outputs = SimpleNamespace(
        log_probs=per_token,
        entropy=torch.zeros_like(per_token),
        mean_logits=torch.zeros_like(per_token),
        is_top1=torch.ones_like(per_token, dtype=torch.bool),
    )
    one_token_of_prompt = torch.ones(len(completions), 1 + TOKENS, dtype=torch.long)
    one_token_of_prompt[:, 0] = 0
    stand_in = SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=ACCELERATOR,
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        use_weighting=False,
        loss_types=loss_types,
        loss_weights=loss_weights or [1.0] * len(loss_types),
        beta=beta,
        label_smoothing=label_smoothing,
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
    )
    inputs = {
        "input_ids": torch.zeros_like(one_token_of_prompt),
        "attention_mask": torch.ones_like(one_token_of_prompt),
        "completion_mask": one_token_of_prompt,
        "ref_chosen_logps": leaves[2],
        "ref_rejected_logps": leaves[3],
    }
    return trainer._compute_loss(stand_in, lambda **_: outputs, inputs, return_outputs=False)


def our_total(loss, leaves, tokens=1):
    """Ours on the sums that TRL saw, or on the means over `tokens` tokens."""
    plus, minus, reference_plus, reference_minus = (leaf / tokens for leaf in leaves)
    return loss(PairScores(plus, minus), PairScores(reference_plus, reference_minus)).total


def assert_same_loss(ours, theirs, leaves):
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6, check_dtype=False)
    for gradient, expected in zip(
        torch.autograd.grad(ours, leaves[:2], allow_unused=True),
        torch.autograd.grad(theirs, leaves[:2], allow_unused=True),
        strict=True,
    ):
        zero = torch.zeros_like(leaves[0])
        gradient, expected = (zero if value is None else value for value in (gradient, expected))
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-6)


BETAS = pytest.mark.parametrize("beta", [0.1, 1.0, 5.0])


@BETAS
@pytest.mark.parametrize(
    ("name", "objective", "label_smoothing"),
    [
        ("sigmoid", objectives.dpo, 0.0),
        ("hinge", objectives.slic, 0.0),
        ("robust", partial(objectives.robust_dpo, label_smoothing=0.2), 0.2),
    ],
)
def test_dpo_family(dpo_trainer, name, objective, label_smoothing, beta):
    """TRL's `hinge` is our slic. All three work on sums over tokens."""
    leaves = random_leaves(16)
    theirs = dpo_loss_of_trl(dpo_trainer, leaves, [name], beta=beta, label_smoothing=label_smoothing)
    assert_same_loss(our_total(PreferenceLoss(partial(objective, beta=beta)), leaves), theirs, leaves)


@BETAS
@pytest.mark.parametrize(("name", "objective"), [("ipo", objectives.ipo), ("sigmoid_norm", objectives.dpo)])
def test_length_normalised(dpo_trainer, name, objective, beta):
    """TRL divides sums by the number of tokens here, which is what a score with reduction "mean" is."""
    leaves = random_leaves(16)
    theirs = dpo_loss_of_trl(dpo_trainer, leaves, [name], beta=beta)
    assert_same_loss(our_total(PreferenceLoss(partial(objective, beta=beta)), leaves, tokens=TOKENS), theirs, leaves)


@BETAS
def test_label_smoothing(dpo_trainer, beta):
    """TRL's `sigmoid` ignores label_smoothing; `aot` has it, and sorting a batch of one pair leaves cDPO."""
    leaves = random_leaves(1)
    theirs = dpo_loss_of_trl(dpo_trainer, leaves, ["aot"], beta=beta, label_smoothing=0.2)
    ours = our_total(PreferenceLoss(partial(objectives.dpo, beta=beta, label_smoothing=0.2)), leaves)
    assert_same_loss(ours, theirs, leaves)


@BETAS
def test_calibration(dpo_trainer, beta):
    """TRL's `sppo_hard` is the calibration anchor alone; `sigmoid` + ½ of it is cal_dpo where β = 1."""
    leaves, calibration = random_leaves(16), partial(anchors.calibration, beta=beta)
    theirs = dpo_loss_of_trl(dpo_trainer, leaves, ["sppo_hard"], beta=beta)
    assert_same_loss(our_total(PreferenceLoss(calibration), leaves), theirs, leaves)
    theirs = dpo_loss_of_trl(dpo_trainer, leaves, ["sigmoid", "sppo_hard"], beta=beta, loss_weights=[1.0, 0.5])
    loss = PreferenceLoss(partial(objectives.dpo, beta=beta), {"calibration": Anchor(0.5, calibration)})
    assert_same_loss(our_total(loss, leaves), theirs, leaves)


@BETAS
def test_sft_and_dpo_nll(dpo_trainer, beta):
    """TRL's `sft` is the mean over tokens: our sft on mean scores; beside `sigmoid_norm` it is dpo_nll (RPO)."""
    leaves = random_leaves(16)
    theirs = dpo_loss_of_trl(dpo_trainer, leaves, ["sft"], beta=beta)
    assert_same_loss(our_total(PreferenceLoss(objectives.sft), leaves, tokens=TOKENS), theirs, leaves)
    theirs = dpo_loss_of_trl(dpo_trainer, leaves, ["sigmoid_norm", "sft"], beta=beta, loss_weights=[1.0, 0.3])
    loss = PreferenceLoss(partial(objectives.dpo, beta=beta), {"nll": Anchor(0.3, anchors.nll)})
    assert_same_loss(our_total(loss, leaves, tokens=TOKENS), theirs, leaves)


ZERO = PairScores(torch.zeros(16, dtype=torch.float64), torch.zeros(16, dtype=torch.float64))


@BETAS
@pytest.mark.parametrize(
    ("name", "label_smoothing", "ours"),
    [
        ("sigmoid", 0.0, lambda policy, beta: objectives.cpo(policy, beta=beta)),
        ("simpo", 0.0, lambda policy, beta: objectives.simpo(policy, beta=beta, gamma=0.7)),
        ("sigmoid", 0.2, lambda policy, beta: objectives.dpo(policy, ZERO, beta=beta, label_smoothing=0.2)),
        ("hinge", 0.0, lambda policy, beta: objectives.slic(policy, ZERO, beta=beta)),
        ("ipo", 0.0, lambda policy, beta: objectives.ipo(policy, ZERO, beta=beta)),
    ],
)
def test_cpo_family(cpo_trainer, name, label_smoothing, ours, beta):
    """A loss without a reference is the one with a reference of zeros.

    TRL's SimPO computes β(s⁺ − s⁻ − γ/β), which is our β(s⁺ − s⁻) − γ with the same γ. The lengths by which it
    divides are outside `cpo_loss`. alpha = 0 switches AlphaPO's reshaping of rewards off.
    """
    chosen, rejected, *_ = random_leaves(16)
    stand_in = SimpleNamespace(
        alpha=0.0,
        accelerator=ACCELERATOR,
        loss_type=name,
        beta=beta,
        simpo_gamma=0.7,
        label_smoothing=label_smoothing,
    )
    theirs, *_ = cpo_trainer.cpo_loss(stand_in, chosen, rejected)
    np.testing.assert_allclose(ours(PairScores(chosen, rejected), beta).tolist(), theirs.tolist(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("lam", [0.1, 1.0])
@pytest.mark.parametrize("scale", [0.05, 1.0, 20.0])
def test_orpo(orpo_trainer, lam, scale):
    """TRL returns λ log σ(log-odds ratio), its λ named beta, and subtracts it from the NLL outside; in float32."""
    chosen, rejected, *_ = random_leaves(16, scale=scale)
    ratio, *_ = orpo_trainer.odds_ratio_loss(SimpleNamespace(beta=lam, accelerator=ACCELERATOR), chosen, rejected)
    ours = objectives.orpo(PairScores(chosen, rejected), lam=lam)
    np.testing.assert_allclose(ours.tolist(), (-chosen - ratio).tolist(), rtol=1e-6, atol=1e-6)
