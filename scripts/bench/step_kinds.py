"""Whole steps of a network: supervised, ours with a cached and a live reference, and the language-model layout."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.cases import BETA, Case, make_case, margin_loss
from bench.many_masks import ManyMasks, make_many
from bench.scale import Scale
from segdpo import Anchor, PreferenceLoss, Score, anchors, objectives
from segdpo.models import smp_model
from segdpo.training import frozen_copy, without_logits


def hinge_loss() -> PreferenceLoss:
    """Return the loss that is the default: dpo on the disagreement, a hinge on the whole image."""
    anchor = Anchor(1.0, partial(anchors.hinge, tau=0.2), score=Score())
    return PreferenceLoss(partial(objectives.dpo, beta=BETA), {"hinge": anchor}, Score(region="disagreement"))


@dataclass(frozen=True, eq=False)
class Bench:
    """A network, its frozen copy, an optimiser and a batch: the same for every kind of step."""

    policy: nn.Module
    reference: nn.Module
    optimizer: torch.optim.Optimizer
    image: Tensor
    gold: Tensor
    case: Case
    many: ManyMasks

    @cached_property
    def loss(self) -> PreferenceLoss:
        """Dpo on the mean over the image: what the language-model layout computes too."""
        return margin_loss()

    def step(self, total: Callable[[], Tensor]) -> Tensor:
        """Forward and loss, backward, the optimiser's step."""
        self.optimizer.zero_grad()
        value = total()
        value.backward()
        self.optimizer.step()
        return value.detach()

    def supervised(self) -> Tensor:
        """Cross-entropy with gold."""
        logits = self.policy(self.image)
        if logits.shape[1] == 1:
            return F.binary_cross_entropy_with_logits(logits[:, 0], self.gold.float())
        return F.cross_entropy(logits, self.gold)

    def without_loss(self) -> Tensor:
        """Run the forward pass alone, with a loss whose backward costs almost nothing."""
        corner: Tensor = self.policy(self.image)[0, 0, 0, 0]
        return corner

    def cached(self, loss: PreferenceLoss | None = None) -> Tensor:
        """Ours, one forward: the reference's scores come from a cache, the index from the collate."""
        loss, pairs = loss or self.loss, (self.case.chosen, self.case.rejected)
        reference = dict.fromkeys(loss.scores, self.case.cached)
        return loss.on_logits(self.policy(self.image), reference, *pairs, index=self.case.index).total

    def live(self) -> Tensor:
        """Ours, two forwards: the reference's logits are gone before the policy's activations come."""
        pairs = (self.case.chosen, self.case.rejected)
        with torch.no_grad():
            scores = self.loss.score_logits(self.reference(self.image), *pairs, index=self.case.index)
            reference = without_logits(scores, self.loss.reads_chosen.reference)
        return self.loss.on_logits(self.policy(self.image), reference, *pairs, index=self.case.index).total

    def all_pairs(self) -> Tensor:
        """Ours on every pair of K masks, one forward."""
        return self.loss(self.many.score(self.policy(self.image)), self.many.cached).total

    def language_model(self) -> Tensor:
        """Train as language models are: the batch holds each image twice, one copy a mask; so for both networks."""
        images = torch.cat([self.image, self.image])
        labels = torch.cat(self.case.wide)
        plus, minus = mask_scores(self.policy(images), labels).chunk(2)
        with torch.no_grad():
            reference_plus, reference_minus = mask_scores(self.reference(images), labels).chunk(2)
        h = (plus - reference_plus) - (minus - reference_minus)
        return -F.logsigmoid(BETA * h).mean()


def mask_scores(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean log-likelihood of one mask an image, by log-softmax and gather."""
    if logits.shape[1] == 1:
        return torch.where(labels == 1, F.logsigmoid(logits[:, 0]), F.logsigmoid(-logits[:, 0])).mean((1, 2))
    return logits.log_softmax(1).gather(1, labels[:, None])[:, 0].mean((1, 2))


def make_bench(scale: Scale, classes: int) -> Bench:
    """Make a U-Net on a ResNet-18 with held statistics, as the preference task holds them, and a batch."""
    torch.manual_seed(0)
    channels = (256, 128, 64, 32, 16)[-scale.step_depth :]
    shape: dict[str, Any] = {"encoder_depth": scale.step_depth, "decoder_channels": channels}
    network = smp_model("unet", "resnet18", encoder_weights=None, classes=classes, **shape)
    policy = network.to(scale.device).eval()
    case = make_case(scale.step_images, classes, scale.step_side, scale.device)
    return Bench(
        policy=policy,
        reference=frozen_copy(policy),
        # So small that the sixty steps of the measurement do not change the network.
        optimizer=torch.optim.AdamW(policy.parameters(), lr=1e-7),
        image=torch.randn(scale.step_images, 3, scale.step_side, scale.step_side, device=scale.device),
        gold=case.wide[0],
        case=case,
        many=make_many(scale.step_images, classes, scale.step_side, scale.device),
    )
