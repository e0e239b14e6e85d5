"""Sizes of what the benchmark measures: on a CPU, on a GPU, and in a test."""

import time
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Scale:
    """Sizes: `step_*` of whole steps of a U-Net of depth `step_depth`, `loss_*` of the loss alone."""

    device: torch.device
    rounds: int = 9
    clock: str = "wall"
    step_images: int = 8
    step_side: int = 128
    step_depth: int = 5
    loss_images: int = 2
    loss_side: int = 512
    error_side: int = 1024
    record_side: int = 512
    records: int = 12
    loop_steps: int = 4
    growth_sides: tuple[int, ...] = (128, 256, 512, 1024)

    @property
    def step_size(self) -> str:
        """The size of a step's batch, for the table."""
        return f"{self.step_images} × {self.step_side}²"

    @property
    def loss_size(self) -> str:
        """The size of the loss's batch without its channels, for the table."""
        return f"{self.loss_images} × {self.loss_side}²"

    def now(self) -> float:
        """Return the seconds of the clock: the wall's, or the processor's, which other processes do not slow down."""
        return time.perf_counter() if self.clock == "wall" else time.process_time()

    def wait(self) -> None:
        """Wait until the device has finished."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def choose_scale(device: str, quick: bool, rounds: int, clock: str = "wall") -> Scale:
    """Return the sizes for a device; `quick` ones only show that everything runs."""
    where = torch.device(device)
    if quick:
        steps = {"step_images": 1, "step_side": 32, "step_depth": 3, "loop_steps": 2}
        losses = {"loss_images": 1, "loss_side": 32, "error_side": 32}
        data = {"record_side": 64, "records": 2}
        return Scale(where, 2, clock, **steps, **losses, **data, growth_sides=(16, 32))
    if where.type == "cuda":
        return Scale(where, rounds, clock, step_images=16, step_side=512, loss_images=8, loss_side=1024)
    return Scale(where, rounds, clock)
