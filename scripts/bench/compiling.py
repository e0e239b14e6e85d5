"""C1: recompiles after warm-up, and how often a step of the loss makes the host wait for the device."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from bench.cases import Case, make_case, make_logits, margin_loss
from bench.loss_speed import anchored_loss
from bench.row import Row, at_most
from bench.scale import Scale
from bench.waits import noted_waits
from segdpo import PairScores, PreferenceLoss, score_pairs

SIDE, CLASSES, WARM_UP, AFTER = 32, 5, 4, 6
# What has to know a value, or how many there are, before the host can go on: a GPU is waited for.
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "bincount", "item"}


def rows(scale: Scale, folder: Path) -> Iterator[Row]:
    """Count both for the margin loss and for an anchored one."""
    # inductor's C++ compiler would take most of a minute; graphs, guards and recompiles are those of any backend.
    backend = "inductor" if scale.device.type == "cuda" else "aot_eager"
    losses = {"margin": margin_loss(), "anchored": anchored_loss()}
    for name, loss in losses.items():
        found = [float(recompiles(loss, scale.device, backend))]
        what = f"recompiles after {WARM_UP} batches, network and {name} loss compiled together, backend {backend}"
        yield Row("C1", what, "", {"ours": found}, ("ours",), at_most(0))
    count: Callable[[Callable[[], object]], list[str]] = waits_on_cuda if scale.device.type == "cuda" else waits_on_cpu
    for name, loss in losses.items():
        check_without_values(loss)
        waits = count(partial(score, loss.reads_chosen.reference, make_case(2, CLASSES, SIDE, scale.device)))
        what = f"waits for the device a step of the {name} loss, index given, forward and backward"
        note = f"{what}: {', '.join(waits)}." if waits else ""
        yield Row("C1", what, "", {"ours": [float(len(waits))]}, ("ours",), at_most(0), note)


def recompiles(loss: PreferenceLoss, device: torch.device, backend: str) -> int:
    """Return how many graphs are made after the warm-up, by batches whose masks differ in other numbers of pixels."""
    torch._dynamo.reset()
    network = nn.Conv2d(3, CLASSES, 3, padding=1).to(device)

    def step(image: Tensor, chosen: Tensor, rejected: Tensor, margin: Tensor) -> Tensor:
        policy = score_pairs(network(image), chosen, rejected)
        reference = type(policy)(chosen=margin, margin=margin)
        return loss(policy, reference).total

    compiled = torch.compile(step, backend=backend)
    made = 0
    for number in range(WARM_UP + AFTER):
        if number == WARM_UP:
            made = counters["stats"]["unique_graphs"]
        case = make_case(2, CLASSES, SIDE, device, seed=number)
        image = torch.randn(2, 3, SIDE, SIDE, device=device)
        arguments = (image, case.chosen, case.rejected, case.reference)
        value = compiled(*arguments)
        value.backward()
        torch.testing.assert_close(value, step(*arguments), rtol=1e-4, atol=1e-5)
    return int(counters["stats"]["unique_graphs"] - made)


def score(wants_chosen: object, case: Case) -> None:
    """Score and go back, without looking at the values: on a GPU nobody does."""
    logits = make_logits(2, CLASSES, SIDE, case.chosen.device)
    found = score_pairs(logits, case.chosen, case.rejected, index=case.index, check=False)
    (found.margin + found.chosen if wants_chosen else found.margin).sum().backward()


def check_without_values(loss: PreferenceLoss) -> None:
    """Stop unless scores become a loss where there are no values to look at."""
    leaves = torch.zeros(2, 2, device="meta", requires_grad=True)
    scores = PairScores(chosen=leaves[0], margin=leaves[1])
    loss(scores, scores.detach()).total.backward()


class Counting(TorchDispatchMode):
    """Counts the operations that would wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Take note and go on."""
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        by_mask = any(isinstance(one, Tensor) and one.dtype == torch.bool for one in indices)
        unsized = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        if name in WAITS or by_mask or unsized:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def waits_on_cpu(work: Callable[[], object]) -> list[str]:
    """Return the operations that would wait on a GPU."""
    work()
    counting = Counting()
    with counting:
        work()
    return counting.found


def waits_on_cuda(work: Callable[[], object]) -> list[str]:
    """Return where CUDA says that the host waited."""
    work()
    with noted_waits() as found:
        work()
    return found
