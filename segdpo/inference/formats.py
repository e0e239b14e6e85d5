"""Export a network to ONNX or to a torch.export program, which run without segdpo."""

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
# Relative to the largest logit; other kernels sum in another order.
TOLERANCE = 1e-4

Predict = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Check:
    """Comparison of a file with the network on a random image: largest difference, and largest logit."""

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
    format: str = "onnx",  # noqa: A002 - the usual name
    dynamic: bool = False,
    notes: Mapping[str, str] | None = None,
) -> list[Check]:
    """Write the network to a file, and return the comparisons with the network; a file that differs is not written.

    Args:
        segmenter: maps normalised float images to logits; it is moved to the CPU and to evaluation mode.
        path: the file.
        shape: [images, channels, height, width] of the file's input.
        format: "onnx", or "torch_export" for a .pt2.
        dynamic: allow any number of images, and any height and width that are multiples of what the network needs.
        notes: texts to keep in the file, such as classes, mean and std.

    Raises:
        ValueError: for an impossible shape, or if the file's logits differ from the network's.
    """
    if format not in FORMATS:
        raise ValueError(f"Expected a format of {', '.join(FORMATS)} but got {format!r}.")
    segmenter.cpu().eval()
    check_size(shape, segmenter.multiple, dynamic)
    program = trace(segmenter, shape, dynamic)
    content = (_onnx_bytes if format == "onnx" else _export_bytes)(program, dict(notes or {}))
    predict = open_onnx(content) if format == "onnx" else open_export(content)
    shapes = [shape, _another_shape(shape, segmenter.multiple)] if dynamic else [shape]
    checks = [compare(segmenter, predict, one) for one in shapes]
    failed = [check for check in checks if not check.passed]
    if failed:
        raise ValueError(
            f"Expected {path} to give the network's logits within {TOLERANCE:g} of the largest but for shape "
            f"{failed[0].shape} they differ by {failed[0].difference:.3g} (largest {failed[0].largest:.3g}); nothing "
            "was written. Try the other format, or export without dynamic."
        )
    write_atomically(path, content)
    return checks


def trace(segmenter: Segmenter, shape: Sequence[int], dynamic: bool) -> torch.export.ExportedProgram:
    """Return the network as a program for images of this shape, or with `dynamic` of any shape."""
    # With one image, the tracer would treat the number of images as a constant.
    example = torch.zeros(2 if dynamic else shape[0], *shape[1:])
    sizes: Any = None
    if dynamic:
        dim = torch.export.Dim
        height, width = (segmenter.multiple * dim(name, min=1, max=4096) for name in ("height", "width"))
        sizes = ({0: dim("images", min=1, max=4096), 2: height, 3: width},)
    with torch.no_grad():
        return torch.export.export(segmenter, (example,), dynamic_shapes=sizes)


def compare(segmenter: Segmenter, predict: Predict, shape: Sequence[int]) -> Check:
    """Return how far `predict` is from the network on a random image of this shape."""
    image = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = segmenter(image)
    difference = (predict(image) - expected).abs().max()
    return Check(tuple(shape), float(difference), float(expected.abs().max()))


def open_onnx(content: bytes) -> Predict:
    """Return an ONNX file as a function, run by onnxruntime on the CPU."""
    import onnxruntime  # type: ignore[import-untyped]

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run([OUTPUT], {INPUT: image.numpy()})[0])


def open_export(content: bytes) -> Predict:
    """Return a .pt2 file as a function."""
    module: nn.Module = torch.export.load(io.BytesIO(content)).module()
    return module


def check_size(shape: Sequence[int], multiple: int, dynamic: bool) -> None:
    """Refuse sizes that the file could not process."""
    if min(shape) < 1:
        raise ValueError(f"Expected images of at least 1 pixel and channel but got shape {tuple(shape)}.")
    if dynamic and (shape[2] % multiple or shape[3] % multiple):
        raise ValueError(
            f"Expected height and width as multiples of {multiple}, because a dynamic file does not "
            f"pad, but got {shape[2]} × {shape[3]}; use multiples, or export without dynamic."
        )


def _onnx_bytes(program: torch.export.ExportedProgram, notes: Mapping[str, str]) -> bytes:
    made = torch.onnx.export(
        program, (), input_names=[INPUT], output_names=[OUTPUT], dynamo=True, verbose=False, external_data=False
    )
    assert made is not None
    for key, text in notes.items():
        made.model.metadata_props[key] = text
    # The exporter writes only to a named file.
    with tempfile.TemporaryDirectory() as folder:
        made.save(Path(folder, "network.onnx"), external_data=False)
        return Path(folder, "network.onnx").read_bytes()


def _export_bytes(program: torch.export.ExportedProgram, notes: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files=dict(notes))
    return buffer.getvalue()


def _another_shape(shape: Sequence[int], multiple: int) -> tuple[int, ...]:
    """Return another shape that a dynamic file has to process."""
    return (shape[0] + 2, shape[1], shape[2] + multiple, shape[3] + 3 * multiple)
