"""Weighted means of named values over steps and over all processes: what the tasks log."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


class Means(Metric):
    """Means of several named values, each weighed by the weight of the pairs (or pixels) that it was taken over.

    One metric for all of them, so that processes exchange two short vectors and not two numbers a name.

    >>> means = Means(["loss", "margin"])
    >>> means.update({"loss": torch.tensor([1.0, 4.0])}, weight=torch.tensor([2.0, 1.0]))
    >>> means.compute()
    {'loss': tensor(2.)}
    """

    full_state_update = False
    sums: Tensor
    weights: Tensor

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        self._places: dict[tuple[str, ...], Tensor] = {}
        for state in ("sums", "weights"):
            self.add_state(state, torch.zeros(len(self.names)), dist_reduce_fx="sum")

    def update(self, values: Mapping[str, Tensor], weight: Tensor) -> None:
        """Add values [pairs] with the pairs' weights [pairs]."""
        weight = weight.detach().to(self.sums.dtype)
        rows = torch.stack([value.detach().to(weight) for value in values.values()])
        places = self._places_of(tuple(values))
        # A product and a sum, not a matrix product: that one autocast would round to half precision.
        self.sums = self.sums.index_add(0, places, (rows * weight).sum(1))
        self.weights = self.weights.index_add(0, places, weight.sum().expand(len(places)))

    def compute(self) -> dict[str, Tensor]:
        """Return the means of what was seen; names without any weight are left out."""
        seen = (self.weights > 0).tolist()
        means = self.sums / self.weights
        return {name: mean for name, mean, was_seen in zip(self.names, means, seen, strict=True) if was_seen}

    def _places_of(self, names: tuple[str, ...]) -> Tensor:
        """Return the names' numbers on the device; kept there, since sending them waits for the device."""
        places = self._places.get(names)
        if places is None or places.device != self.sums.device:
            numbers = [self.names.index(name) for name in names]
            places = self._places[names] = torch.tensor(numbers, device=self.sums.device)
        return places
