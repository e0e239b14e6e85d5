"""Requirements of every conf/loss/*.yaml; new files are found automatically."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

import segdpo
from segdpo.recipes.config import check_beta

# Its hundreds of cases go through lines that the tests of each term go through too.
pytestmark = pytest.mark.untraced
CONF = Path(__file__).parents[2] / "conf"
LOSSES = sorted(path.stem for path in (CONF / "loss").glob("*.yaml"))
QUANTITIES = ("log_likelihood", "log_odds")
REGIONS = ("image", "disagreement", "boundary")
REDUCTIONS = ("sum", "mean", "class_balanced")
TABLE = {
    *("dpo", "linear_anchor", "lse_anchor", "hinge_anchor", "cal_hinge", "cal_dpo", "dpo_nll", "bdpo", "dpop", "ipo"),
    *("slic", "robust_dpo", "cpo", "simpo", "orpo", "arpo", "hold_anchor", "plackett_luce", "sft"),
}


@pytest.fixture(scope="module")
def configs():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return {name: compose("train", overrides=[f"loss={name}"]) for name in LOSSES}


def build(configs, name, **score):
    config = configs[name].copy()
    OmegaConf.update(config, "score", score)
    OmegaConf.update(config, "anchor_score", score)
    OmegaConf.update(config, "beta", 3.0)
    return instantiate(config.loss)


def make_batch(channels=3, space=(3, 3), pairs=None, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    policy, reference = torch.randn(2, 2, channels, *space, generator=generator, dtype=dtype)
    masks = torch.randint(0, max(2, channels), (2, pairs or 2, *space), generator=generator)
    index = None if pairs is None else torch.randint(0, 2, (pairs,), generator=generator)
    return policy.requires_grad_(), reference, *masks, index


BETAS = {
    "disagreement_mean": 3.0,
    "disagreement_balanced": 3.0,
    "disagreement_sum": 0.01,
    "boundary_mean": 10.0,
    "image_mean": 100.0,
    "image_balanced": 100.0,
    "image_sum": 0.01,
    "log_odds": 1.5,
}


def test_every_score_has_a_default_beta():
    assert {path.stem for path in (CONF / "score").glob("*.yaml")} == BETAS.keys()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert {name: compose("train", overrides=[f"score={name}"]).beta for name in BETAS} == BETAS
        assert compose("train", overrides=["score=image_sum", "beta=7"]).beta == 7
        unknown = compose("train", overrides=["score=log_odds", "score.region=image"])
        with pytest.raises(ValueError, match=r"beta=NUMBER .* default_beta .*'region': 'image'"):
            check_beta(unknown)
    for name, beta in BETAS.items():
        assert f"beta is then {beta:g};" in (CONF / "score" / f"{name}.yaml").read_text()


def test_the_whole_family_is_there():
    assert set(LOSSES) >= TABLE


@pytest.mark.parametrize("name", LOSSES)
def test_opens_with_a_description_and_the_command(name):
    first, second, *_ = (CONF / "loss" / f"{name}.yaml").read_text().splitlines()
    assert first.startswith("# ")
    assert first.endswith(".")
    assert second == f"#   segdpo train loss={name}"


@pytest.mark.parametrize("name", LOSSES)
def test_builds_and_knows_whether_it_needs_a_reference(configs, name):
    loss = instantiate(configs[name].loss)
    assert isinstance(loss, segdpo.PreferenceLoss)
    assert loss.needs_reference == (name not in {"cpo", "simpo", "orpo", "arpo", "sft"})


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("channels", "space", "pairs"), [(1, (6, 5), None), (4, (6, 5), 3), (2, (4, 3, 3), None), (3, (7,), 5)]
)
def test_binary_and_multi_class_in_any_dimension(configs, name, channels, space, pairs):
    policy, reference, chosen, rejected, index = make_batch(channels, space, pairs)
    terms = instantiate(configs[name].loss).on_logits(policy, reference, chosen, rejected, image_index=index)
    assert terms.total.shape == ()
    assert all(part.shape == (len(chosen),) and part.isfinite().all() for part in terms.parts.values())
    terms.total.backward()
    assert policy.grad.isfinite().all()
    assert policy.grad.abs().sum() > 0


@pytest.mark.parametrize("name", LOSSES)
def test_permuting_pairs_changes_nothing(configs, name):
    policy, reference, chosen, rejected, index = make_batch(pairs=5)
    loss, order = instantiate(configs[name].loss), torch.tensor([4, 2, 0, 1, 3])
    before = loss.on_logits(policy, reference, chosen, rejected, image_index=index)
    after = loss.on_logits(policy, reference, chosen[order], rejected[order], image_index=index[order])
    torch.testing.assert_close(after.total, before.total)
    torch.testing.assert_close(after.parts, {key: part[order] for key, part in before.parts.items()})


@pytest.mark.parametrize("name", LOSSES)
def test_finite_on_huge_half_precision_logits(configs, name):
    policy, reference, chosen, rejected, _ = make_batch(space=(8, 8))
    loss = build(configs, name, quantity="log_likelihood", region="image", reduction="mean")
    for dtype in (torch.bfloat16, torch.float16):
        logits = (policy.detach().sign() * 1e4).to(dtype).requires_grad_()
        terms = loss.on_logits(logits, (reference.sign() * 1e4).to(dtype), chosen, rejected)
        terms.total.backward()
        assert terms.total.isfinite()
        assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_equal_masks_give_no_preference_gradient(configs, name):
    """Finite everywhere; only an anchor on the chosen mask has a gradient."""
    policy, reference, chosen, _, _ = make_batch()
    terms = instantiate(configs[name].loss).on_logits(policy, reference, chosen, chosen)
    terms.total.backward()
    assert policy.grad.isfinite().all()
    if name in {"dpo", "ipo", "slic", "robust_dpo", "linear_anchor", "plackett_luce"}:
        assert (policy.grad == 0).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(configs, name, quantity, region, reduction):
    try:
        loss = build(configs, name, quantity=quantity, region=region, reduction=reduction)
    except Exception as error:
        assert "is defined on scores with" in str(error)  # noqa: PT017 - Hydra wraps it in an error of its own
        assert name in {"simpo", "orpo", "arpo"}
        return
    channels = 1 if region == "boundary" else 3
    policy, reference, chosen, rejected, index = make_batch(channels, (2, 2), pairs=3, dtype=torch.float64)

    def total(logits: torch.Tensor) -> torch.Tensor:
        return loss.on_logits(logits, reference, chosen, rejected, image_index=index).total

    # Along one direction in which every logit moves: a wrong slope of any of them shows, at two values for fifty.
    assert torch.autograd.gradcheck(total, policy, eps=1e-6, atol=1e-6, rtol=1e-5, fast_mode=True)
