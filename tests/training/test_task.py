"""A loss that is not finite is an error at once on a CPU, one step later elsewhere; the message names the images."""

import pytest
import torch

from segdpo.training import NonFiniteLossError, batch_in_errors
from segdpo.training.task import FiniteGuard

FINE = {"objective": torch.tensor([1.0, 2.0]), "hinge": torch.tensor([0.0, 1.0])}
MESSAGE = r"at step 7 loss and hinge became NaN .* images a, b; lower the learning rate"


def test_a_cpu_is_checked_at_once():
    guard = FiniteGuard()
    guard.watch(torch.tensor(1.0), FINE, ["a", "b"], 6)
    with pytest.raises(NonFiniteLossError, match=MESSAGE):
        guard.watch(torch.tensor(torch.inf), {**FINE, "hinge": torch.tensor([1.0, torch.nan])}, ["a", "b"], 7)


class Elsewhere(torch.Tensor):
    """A tensor that claims to be on another device."""

    @property
    def device(self):
        return torch.device("xpu")


def test_another_device_is_checked_one_step_later():
    guard = FiniteGuard()
    guard.watch(
        torch.tensor(torch.nan).as_subclass(Elsewhere), {**FINE, "hinge": torch.tensor([torch.nan])}, ["a", "b"], 7
    )
    with pytest.raises(NonFiniteLossError, match=MESSAGE):
        guard.watch(torch.tensor(1.0).as_subclass(Elsewhere), FINE, ["c"], 8)
    guard.watch(torch.tensor(-torch.inf).as_subclass(Elsewhere), FINE, ["d"], 9)
    with pytest.raises(NonFiniteLossError, match="at step 9 loss became"):
        guard.check_pending()
    guard.check_pending()


def test_errors_name_step_and_images():
    with (
        pytest.raises(ValueError, match=r"chosen has class 7 \(Step 3, images: a, b\.\)"),
        batch_in_errors(["a", "b"], 3),
    ):
        raise ValueError("chosen has class 7")
