"""Every yaml of references, optimisers and schedules composes, builds, and trains two steps."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from segdpo.models import Segmenter, add_lora, freeze_parts
from segdpo.training import PreferenceTask

CONF = Path(__file__).parents[2] / "conf"
GROUPS = ("reference", "optimizer", "scheduler", "beta_schedule", "sft_loss")
CHOICES = [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
NEEDED = {
    ("reference", "none"): ["loss=simpo"],
    ("reference", "shared_encoder"): ["reference.encoder=network.0", "freeze=[network.0]"],
}


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_a_yaml_begins_with_a_description_and_a_command(group, name):
    lines = (CONF / group / f"{name}.yaml").read_text().splitlines()
    assert lines[0].startswith("# ")
    assert lines[1].startswith("#   segdpo train ")
    assert f"{group}={name}" in lines[1]


@pytest.mark.parametrize(("group", "name"), [choice for choice in CHOICES if choice[0] != "sft_loss"])
def test_two_steps(group, name, network, data, fit, tmp_path):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = [f"{group}={name}", f"cache={tmp_path}", *NEEDED.get((group, name), [])]
        config = compose("train", overrides=overrides)
    whole = Segmenter(network, classes=2)
    reference = instantiate(config.reference)(whole)
    policy = add_lora(whole, rank=2) if name == "adapter_off" else whole
    freeze_parts(policy, config.freeze)
    before = [parameter.detach().clone() for parameter in policy.parameters()]
    task = PreferenceTask(
        policy,
        reference,
        instantiate(config.loss),
        instantiate(config.optimizer),
        scheduler=instantiate(config.scheduler),
        beta=instantiate(config.beta_schedule),
        starts_at_reference=True,
    )
    logged = fit(task, data(), max_steps=2).callback_metrics
    assert torch.isfinite(torch.stack(list(logged.values()))).all()
    assert any(not torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))
    assert ("train/beta" in logged) is (group == "beta_schedule" and name != "constant")
    assert any(tmp_path.rglob("*.scores")) is (name == "cached")
