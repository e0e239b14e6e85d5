"""A network as a file that needs none of this code: ONNX, or a program of torch.export; checked against the network."""

import io
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segdpo.files import write_atomically
from segdpo.models import Segmenter

INPUT, OUTPUT = "image", "logits"
FORMATS = ("onnx", "torch_export")
# Of the largest logit: kernels sum in another order than ours.
TOLERANCE = 1e-4

Predict = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Check:
    """How far a file's logits are from the network's on one random image: largest difference, and largest logit."""

    shape: tuple[int, ...]
    difference: float
    largest: float

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance; NaN is not."""
        return self.difference <= TOLERANCE * max(1.0, self.largest)


def export(
    segmenter: Segmenter,
    path: Path,
    shape: tuple[int, int, int, int],
    *,
    format: str = "onnx",  # noqa: A002 - what users call it
    dynamic: bool = False,
    notes: Mapping[str, str] | None = None,
) -> list[Check]:
    """Write the network to `path` and return the checks; a file that computes something else is not written.

    Args:
        segmenter: takes float images, normalised, and returns logits; goes to eval mode.
        path: the file to write.
        shape: [images, channels, height, width] of what the file takes.
        format: "onnx", or "torch_export" for a .pt2.
        dynamic: take any number of images, and any height and width that are multiples of what the network needs.
        notes: texts to keep in the file, such as classes, mean and std.
    """
    if format not in FORMATS:
        raise ValueError(f"Expected a format of {', '.join(FORMATS)} but got {format!r}.")
    segmenter.cpu().eval()
    check_size(shape, segmenter.multiple, dynamic)
    program = trace(segmenter, shape, dynamic)
    content = (_onnx_bytes if format == "onnx" else _program_bytes)(program, dict(notes or {}))
    predict = open_onnx(content) if format == "onnx" else open_program(content)
    shapes = [shape, _another(shape, segmenter.multiple)] if dynamic else [shape]
    checks = [compare(segmenter, predict, one) for one in shapes]
    failed = [check for check in checks if not check.passed]
    if failed:
        raise ValueError(
            f"Expected {path} to give the network's logits within {TOLERANCE:g} of the largest but for shape "
            f"{failed[0].shape} they differ by {failed[0].difference:.3g} (largest {failed[0].largest:.3g}); nothing "
            "was written. Try the other format, or without dynamic."
        )
    write_atomically(path, content)
    return checks


def trace(segmenter: Segmenter, shape: Sequence[int], dynamic: bool) -> torch.export.ExportedProgram:
    """Return the network as a program for images of this shape, or (dynamic) of any."""
    # Two images: with one, the tracer takes the number for a constant.
    example = torch.zeros(2 if dynamic else shape[0], *shape[1:])
    sizes: Any = None
    if dynamic:
        dim = torch.export.Dim
        height, width = (segmenter.multiple * dim(name, min=1, max=4096) for name in ("height", "width"))
        sizes = ({0: dim("images", min=1, max=4096), 2: height, 3: width},)
    with torch.no_grad():
        return torch.export.export(segmenter, (example,), dynamic_shapes=sizes)


def compare(segmenter: Segmenter, predict: Predict, shape: Sequence[int]) -> Check:
    """Return how far `predict` is from the network on a random image."""
    image = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = segmenter(image)
    difference = (predict(image) - expected).abs().max()
    return Check(tuple(shape), float(difference), float(expected.abs().max()))


def open_onnx(content: bytes) -> Predict:
    """Return what an ONNX file computes, by onnxruntime on the CPU."""
    import onnxruntime  # type: ignore[import-untyped]

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run([OUTPUT], {INPUT: image.numpy()})[0])


def open_program(content: bytes) -> Predict:
    """Return what a .pt2 file computes."""
    module: nn.Module = torch.export.load(io.BytesIO(content)).module()
    return module


def check_size(shape: Sequence[int], multiple: int, dynamic: bool) -> None:
    """Refuse sizes that the file could not take."""
    if min(shape) < 1:
        raise ValueError(f"Expected images of at least 1 pixel and channel but got shape {tuple(shape)}.")
    if dynamic and (shape[2] % multiple or shape[3] % multiple):
        raise ValueError(
            f"Expected height and width as multiples of {multiple}, which the network needs and a dynamic file does "
            f"not pad to, but got {shape[2]} × {shape[3]}; take multiples, or export without dynamic."
        )


def _onnx_bytes(program: torch.export.ExportedProgram, notes: Mapping[str, str]) -> bytes:
    made = torch.onnx.export(
        program, (), input_names=[INPUT], output_names=[OUTPUT], dynamo=True, verbose=False, external_data=False
    )
    assert made is not None
    for key, text in notes.items():
        made.model.metadata_props[key] = text
    # The exporter writes to a name only.
    with tempfile.TemporaryDirectory() as folder:
        made.save(Path(folder, "network.onnx"), external_data=False)
        return Path(folder, "network.onnx").read_bytes()


def _program_bytes(program: torch.export.ExportedProgram, notes: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files=dict(notes))
    return buffer.getvalue()


def _another(shape: Sequence[int], multiple: int) -> tuple[int, ...]:
    """Return a shape that a dynamic file has to take too."""
    return (shape[0] + 2, shape[1], shape[2] + multiple, shape[3] + 3 * multiple)
