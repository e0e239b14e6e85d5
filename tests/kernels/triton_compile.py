"""Compile every Triton kernel for an NVIDIA GPU of capability 9, with none at hand; print the kernels' names.

Run by test_triton.py. Launches of `triton_scores` on CPU tensors are compiled down to machine code, not run.
"""

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from segdpo.kernels import triton_scores
from segdpo.kernels.pixels import Measure


class NoGpu:
    """The parts of a driver that the compiler needs."""

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


launch = JITFunction.run
stores = []


def compile_only(self, *args, grid, warmup, **options):
    compiled = launch(self, *args, grid=grid, warmup=True, **options)
    assert compiled.asm["cubin"]
    print(self.__name__)
    if self.__name__.endswith("gradient"):
        stores.append(compiled.asm["ptx"].count("st.global.v4.b32"))


def score(channels, pairs, wants, dtype, ids, pixels=300):
    logits = torch.zeros(2, channels, pixels, dtype=dtype, requires_grad=True)
    labels = torch.zeros(pairs or 2, pixels, dtype=ids)
    index = torch.zeros(pairs, dtype=torch.int64) if pairs else None
    quantities = ["log_likelihood", "log_odds" if channels == 1 else "log_likelihood"]
    columns = [1, max(2, channels)]
    measures = [
        Measure(labels == 0, torch.ones(len(labels), column), labels, index, quantity)
        for column, quantity in zip(columns, quantities, strict=True)
    ]
    margins, whole = triton_scores.triton_scores(logits, labels, labels, measures, wants)
    torch.stack([value for value in [*margins, *whole] if value is not None]).sum().backward()


driver.set_active(NoGpu())
JITFunction.run = compile_only
triton_scores.is_usable = lambda logits: True
score(19, 3, [False, False], torch.bfloat16, torch.uint8)
score(3, None, [False, True], torch.float32, torch.int64)
score(1, 3, [True, True], torch.float16, torch.uint8)
# 16 bytes a thread, where the number of pixels allows it.
stores.clear()
score(19, None, [False, True], torch.bfloat16, torch.uint8, pixels=4096)
score(1, 3, [False, True], torch.bfloat16, torch.uint8, pixels=4096)
assert len(stores) == 2
assert all(stores)
