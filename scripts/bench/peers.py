"""P1: other packages on the same network and tensors: TRL's DPO; on a GPU, fused cross-entropies too."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.cases import BETA, back, make_case, make_logits, margin_loss
from bench.rounds import rounds_of
from bench.row import Row
from bench.scale import Scale
from bench.step_kinds import Bench, make_bench

CLASSES = 21


def rows(scale: Scale, folder: Path) -> Iterator[Row]:
    """Measure the packages that are installed; name those that are not."""
    yield trl_row(scale)
    if scale.device.type == "cuda":
        yield from cross_entropy_rows(scale)


def trl_row(scale: Scale) -> Row:
    """Measure a step through `DPOTrainer._compute_loss`, reference live, beside our live step."""
    scale = replace(scale, step_images=max(1, scale.step_images // 2))
    where = f"U-Net ResNet-18, {CLASSES} classes, {scale.step_size}"
    what = f"step with TRL's own DPO arithmetic and layout ÷ our live step; {where}"
    try:
        trl = import_module("trl")
        trainer = import_module("trl.trainer.dpo_trainer").DPOTrainer
    except ImportError as error:
        return Row("P1", what, over=(), note=f"{what}: not installed ({error}).")
    bench = make_bench(scale, CLASSES)
    theirs = partial(trl_loss, trainer, bench)
    torch.testing.assert_close(theirs().detach(), bench.live().detach(), rtol=1e-3, atol=1e-4)
    sides: dict[str, Callable[[], object]] = {
        "naive": partial(bench.step, theirs),
        "ours": partial(bench.step, bench.live),
    }
    found = rounds_of(sides, scale, "TRL")
    note = (
        f"TRL {trl.__version__}: a stand-in model answers with the log-likelihood of each pixel for each token; "
        "entropy and accuracy, which TRL would compute too, are handed to it for nothing."
    )
    return Row("P1", what, "ms", found, ("naive", "ours"), None, note)


class StandIn(nn.Module):
    """What TRL takes for a language model: one token a pixel, one sequence a mask."""

    is_gradient_checkpointing = False

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.network, self.images = network, images

    def forward(self, input_ids: Tensor, labels: Tensor, **named: Any) -> SimpleNamespace:
        """Return the log-likelihood of every pixel's class; the first token is the prompt."""
        logits = self.network(self.images).flatten(2)
        log_probs = logits.log_softmax(1).gather(1, input_ids[:, None, 1:])[:, 0]
        nothing = torch.zeros(1, device=log_probs.device).expand_as(log_probs)
        return SimpleNamespace(log_probs=log_probs, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())


def trl_loss(trainer: Any, bench: Bench) -> Tensor:
    """Return the loss of TRL's trainer, called with a stand-in that has only what it reads."""
    images = torch.cat([bench.image, bench.image])
    labels = torch.cat(bench.case.wide).flatten(1)
    tokens = torch.cat([torch.zeros_like(labels[:, :1]), labels], 1)
    completion = torch.ones_like(tokens)
    completion[:, 0] = 0
    model = StandIn(bench.policy, images)
    stand_in = SimpleNamespace(
        model=model,
        ref_model=StandIn(bench.reference, images),
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        accelerator=SimpleNamespace(device=bench.image.device, gather=_same, gather_for_metrics=_same),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=False,
        f_divergence_type="reverse_kl",
        use_weighting=False,
        loss_types=["sigmoid_norm"],
        loss_weights=[1.0],
        beta=BETA,
        label_smoothing=0.0,
        _metrics={"train": defaultdict(list), "eval": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs = {"input_ids": tokens, "attention_mask": completion, "completion_mask": completion}
    result: Tensor = trainer._compute_loss(stand_in, model, inputs, return_outputs=False)
    return result


def _same(value: Tensor) -> Tensor:
    return value


def cross_entropy_rows(scale: Scale) -> Iterator[Row]:
    """Measure dpo from two fused cross-entropies on permuted logits, where they are installed."""
    case = make_case(scale.loss_images, CLASSES, scale.loss_side, scale.device)
    logits = make_logits(scale.loss_images, CLASSES, scale.loss_side, scale.device)
    loss = margin_loss()
    for name, module, function in (
        ("Liger", "liger_kernel.transformers.functional", "liger_cross_entropy"),
        ("flash-attn", "flash_attn.ops.triton.cross_entropy", "cross_entropy_loss"),
    ):
        what = f"two {name} cross-entropies on permuted logits ÷ our margin loss; C = {CLASSES}, {scale.loss_size}"
        try:
            entropy = getattr(import_module(module), function)
        except ImportError as error:
            yield Row("P1", what, over=(), note=f"{what}: not installed ({error}).")
            continue

        def theirs(entropy: Any = entropy, name: str = name) -> Tensor:
            flat = logits.movedim(1, -1).reshape(-1, CLASSES)
            each = [_losses(entropy, name, flat, mask.flatten()).view_as(mask).mean((1, 2)) for mask in case.wide]
            return -F.logsigmoid(BETA * (each[1] - each[0] - case.reference)).mean()

        def ours() -> Tensor:
            return loss.on_logits(logits, case.cached, case.chosen, case.rejected, index=case.index).total

        sides: dict[str, Callable[[], object]] = {
            "naive": partial(back, logits, theirs),
            "ours": partial(back, logits, ours),
        }
        found = rounds_of(sides, scale, name)
        yield Row("P1", what, "ms", found, ("naive", "ours"))


def _losses(entropy: Any, name: str, flat: Tensor, labels: Tensor) -> Tensor:
    """Return a cross-entropy a pixel: Liger by reduction, flash-attn as the first of a tuple."""
    found: Tensor = entropy(flat, labels, reduction="none") if name == "Liger" else entropy(flat, labels)[0]
    return found
