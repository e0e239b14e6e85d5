"""What to say when weights belong to another network."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

SHOWN = 3


def check_fits(path: str | Path, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Refuse weights of another architecture, another number of classes, or with an adapter where there is none.

    `own` are the tensors that the network has, by name.
    """
    missing = [name for name in own if name not in state]
    unexpected = sorted(name for name in state if name not in own)
    shapes = {
        name: (tuple(state[name].shape), tuple(value.shape))
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    }
    if not (missing or unexpected or shapes):
        return
    differing = [f"{name} {theirs} instead of {ours}" for name, (theirs, ours) in shapes.items()]
    found = [
        f"{len(names)} {what} ({_some(names)})"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", differing))
        if names
    ]
    mend = _mend(missing, unexpected, shapes)
    raise ValueError(f"Expected {path} to hold the weights of this network but found {', '.join(found)}; {mend}")


def _mend(
    missing: Sequence[str], unexpected: Sequence[str], shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
) -> str:
    outputs = {(theirs[:1], ours[:1]) for theirs, ours in shapes.values() if theirs[1:] == ours[1:]}
    if not missing and not unexpected and len(outputs) == 1 and all(a[1:] == b[1:] for a, b in shapes.values()):
        ((theirs,), (ours,)) = outputs.pop()
        return (
            f"the file's network predicts {_outputs(theirs)} and this one {_outputs(ours)}: take the data set that it "
            "was trained on, or set model.classes as it was."
        )
    if any(".lora_" in name for name in unexpected):
        return "the file holds an adapter: add one of the same rank and targets first (adapter=lora)."
    if any(".lora_" in name for name in missing):
        return "this network has an adapter and the file none: load the weights before the adapter is added."
    return "choose the model (model=…, model.encoder_name=…) that they were trained with, or other weights."


def _outputs(channels: int) -> str:
    return "1 channel (2 classes)" if channels == 1 else f"{channels} classes"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
