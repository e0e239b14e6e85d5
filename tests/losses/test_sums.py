"""Sum and weight of a loss over batches and processes; references get no gradient."""

import os
from functools import partial

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

import segdpo
from segdpo import Anchor, PairScores, PreferenceLoss, kl_to_reference, score_pairs
from segdpo.losses import RewardLoss, anchors, bradley_terry, objectives

LOSS = PreferenceLoss(
    partial(objectives.dpo, beta=2.0),
    {"hinge": Anchor(0.5, partial(anchors.hinge, tau=0.3)), "nll": Anchor(1.0, anchors.nll)},
)
GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randn(7, 2, 5, 5, generator=GENERATOR, dtype=torch.float64)
CHOSEN, REJECTED = torch.randint(3, (2, 7, 5, 5), generator=GENERATOR).byte()
WEIGHT = torch.tensor([0.5, 3.0, 0.0, 1.0, 7.0, 0.25, 2.0], dtype=torch.float64)
# Batches of another number of pairs each, in the order of processes and then of accumulation.
BATCHES = [[[0, 1, 2], [3]], [[4], [5, 6]]]


def make():
    torch.manual_seed(0)
    return nn.Conv2d(2, 3, 3, padding=1, dtype=torch.float64)


def terms_of(network, pairs):
    with torch.no_grad():
        reference = make()(IMAGES[pairs])
    return LOSS.on_logits(network(IMAGES[pairs]), reference, CHOSEN[pairs], REJECTED[pairs], weight=WEIGHT[pairs])


def gradient_of(network):
    return torch.cat([parameter.grad.flatten() for parameter in network.parameters()])


def of_one_batch():
    network = make()
    nn.init.normal_(network.weight, generator=torch.Generator().manual_seed(1))
    terms_of(network, list(range(7))).total.backward()
    return gradient_of(network)


def train(rank, port, found):
    """A step of docs/howto/own_loop.md in one of two processes."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    network = make()
    nn.init.normal_(network.weight, generator=torch.Generator().manual_seed(1))
    model = DistributedDataParallel(network)
    weight = torch.zeros((), dtype=torch.float64)
    for number, pairs in enumerate(BATCHES[rank]):
        last = number == len(BATCHES[rank]) - 1
        with model.no_sync() if not last else torch.enable_grad():
            terms = terms_of(model, pairs)
            terms.sum.backward()
        weight += terms.weight
    distributed.all_reduce(weight)
    for parameter in model.parameters():
        parameter.grad *= distributed.get_world_size() / weight
    if rank == 1:
        found.put(gradient_of(network).tolist())
    distributed.destroy_process_group()


def test_two_processes_that_accumulate_have_the_gradient_of_one_batch():
    context = multiprocessing.get_context("fork")
    found, port = context.Queue(), 20000 + os.getpid() % 20000
    processes = [context.Process(target=train, args=(rank, port, found)) for rank in range(2)]
    for process in processes:
        process.start()
    gradient = torch.tensor(found.get(timeout=120), dtype=torch.float64)
    for process in processes:
        process.join()
    torch.testing.assert_close(gradient, of_one_batch(), rtol=1e-12, atol=1e-14)


def test_sum_and_weight():
    network = make()
    whole, parts = (
        terms_of(network, list(range(7))),
        [terms_of(network, pairs) for batches in BATCHES for pairs in batches],
    )
    torch.testing.assert_close(sum(part.sum for part in parts) / sum(part.weight for part in parts), whole.total)
    assert whole.weight == WEIGHT.sum()
    even = LOSS(*[PairScores(torch.zeros(4), margin=torch.zeros(4))] * 2)
    assert even.weight == 4
    terms = RewardLoss(bradley_terry)(torch.zeros(3, 2), weight=torch.tensor([1.0, 0.5, 0.0]))
    assert terms.weight == 1.5
    assert terms.sum.item() == pytest.approx(1.5 * 0.693147, rel=1e-5)


def test_reference_scores_that_carry_a_gradient_train_nothing():
    policy, reference = make(), make()
    loss = PreferenceLoss(
        partial(objectives.dpo, beta=2.0),
        {"lse": Anchor(0.5, anchors.log_sum_exp), "cal": Anchor(0.5, partial(anchors.calibration, beta=2.0))},
    )
    masks = CHOSEN, REJECTED
    ours = loss(score_pairs(policy(IMAGES), *masks), score_pairs(reference(IMAGES), *masks)).total
    ours.backward()
    assert all(parameter.grad is None for parameter in reference.parameters())
    with torch.no_grad():
        fixed = score_pairs(reference(IMAGES), *masks)
    assert loss(score_pairs(policy(IMAGES), *masks), fixed).total == ours
    two_sided = PairScores(*torch.randn(2, 7, dtype=torch.float64).requires_grad_())
    assert not loss(fixed, two_sided).total.requires_grad
    # The KL to the reference trains the policy alone, as do logits and rankings.
    kl_to_reference(policy(IMAGES), reference(IMAGES), *masks).mean().backward()
    listed = PreferenceLoss(partial(segdpo.listwise.plackett_luce, beta=2.0))
    ranking = torch.stack([*masks], 1)
    scores = [segdpo.score_ranking(network(IMAGES), ranking) for network in (policy, reference)]
    listed(*scores).total.backward()
    loss.on_logits(policy(IMAGES), reference(IMAGES), *masks).total.backward()
    assert all(parameter.grad is None for parameter in reference.parameters())


def test_scores_are_not_computed_for_a_reference_that_is_not_read():
    def never():
        raise AssertionError

    margin = torch.zeros(2)
    loss = PreferenceLoss(partial(objectives.dpo, beta=1.0))
    assert loss(PairScores(never, margin=margin), PairScores(never, margin=margin)).total.item() == pytest.approx(
        0.6931472
    )
