"""Export a network to ONNX or to a torch.export program, which run without segdpo."""

import io
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segdpo.data import Preparation
from segdpo.extras import extra_named
from segdpo.files import write_atomically
from segdpo.inference.whole_graph import (
    DIFFERING,
    Agreement,
    WholeGraph,
    compare_masks,
    example_images,
    resizes,
)
from segdpo.models import Segmenter

INPUT = "image"
FORMATS = ("onnx", "torch_export")
# Relative to the largest logit; other kernels sum in another order.
TOLERANCE = 1e-4

Predict = Callable[[Tensor], Tensor]
Shape = tuple[int, int, int, int]


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

    def __str__(self) -> str:
        size = " × ".join(map(str, self.shape))
        return f"{size}: largest difference {self.difference:.3g}, largest logit {self.largest:.3g}"


@dataclass(frozen=True)
class Graph:
    """What a file computes, and how it is compared with the network.

    Attributes:
        module: the computation.
        output: the name of its result.
        example: an input of the file.
        sizes: for a dynamic file, the sizes of each axis that may vary.
        shapes: [images, channels, height, width] that the file is compared at.
        compare: compares the file as a function at such a shape.
        allowed: what `compare` allows, in words.
    """

    module: nn.Module
    output: str
    example: Tensor
    sizes: dict[int, Any] | None
    shapes: Sequence[Shape]
    compare: Callable[[Predict, Shape], Check | Agreement]
    allowed: str


def export(
    segmenter: Segmenter,
    path: Path,
    shape: Shape,
    *,
    format: str = "onnx",  # noqa: A002 - the usual name
    dynamic: bool = False,
    preparation: Preparation | None = None,
    notes: Mapping[str, str] | None = None,
) -> Sequence[Check | Agreement]:
    """Write the network to a file, and return the comparisons with the network; a file that differs is not written.

    Args:
        segmenter: maps normalised float images to logits; it is moved to the CPU and to evaluation mode.
        path: the file.
        shape: [images, channels, height, width] of the images.
        format: "onnx", or "torch_export" for a .pt2.
        dynamic: allow any number of images, and any height and width that are multiples of what the network needs; with
            a preparation that resizes, any at all.
        preparation: part of the file, which then maps uint8 images [images, height, width, channels] to class ids.
        notes: texts to keep in the file, such as classes, mean and std.

    Raises:
        ValueError: for an impossible shape or preparation, or if the file computes something else than the network.
    """
    if format not in FORMATS:
        raise ValueError(f"Expected a format of {', '.join(FORMATS)} but got {format!r}.")
    if min(shape) < 1:
        raise ValueError(f"Expected images of at least 1 pixel and channel but got shape {tuple(shape)}.")
    segmenter.cpu().eval()
    if preparation is None:
        graph = logits_graph(segmenter, shape, dynamic)
    else:
        graph = mask_graph(segmenter, preparation, shape, dynamic)
    content = (_onnx_bytes if format == "onnx" else _export_bytes)(graph, dict(notes or {}))
    predict = open_onnx(content, graph.output) if format == "onnx" else open_export(content)
    checks = [graph.compare(predict, one) for one in graph.shapes]
    failed = [check for check in checks if not check.passed]
    if failed:
        raise ValueError(
            f"Expected {path} to give {graph.allowed} but got {failed[0]}; nothing was written. Try the other format, "
            "or export without dynamic."
        )
    write_atomically(path, content)
    return checks


def logits_graph(segmenter: Segmenter, shape: Shape, dynamic: bool) -> Graph:
    """Return the network as a graph from normalised images to logits."""
    multiple = segmenter.multiple
    if dynamic and (shape[2] % multiple or shape[3] % multiple):
        raise ValueError(
            f"Expected height and width as multiples of {multiple}, because a dynamic file does not "
            f"pad, but got {shape[2]} × {shape[3]}; use multiples, or export without dynamic."
        )
    another = (shape[0] + 2, shape[1], shape[2] + multiple, shape[3] + 3 * multiple)
    return Graph(
        segmenter,
        "logits",
        torch.zeros(_count(shape, dynamic), *shape[1:]),
        {0: _sizes("images"), 2: multiple * _sizes("height"), 3: multiple * _sizes("width")} if dynamic else None,
        [shape, another] if dynamic else [shape],
        partial(compare, segmenter),
        f"the network's logits within {TOLERANCE:g} of the largest",
    )


def mask_graph(segmenter: Segmenter, preparation: Preparation, shape: Shape, dynamic: bool) -> Graph:
    """Return the network and the preparation of its images as a graph from images to class ids."""
    if dynamic and not resizes(preparation):
        raise ValueError(
            f"Expected a preparation that resizes images to one size but it has {preparation.words}, and a file for "
            "any size cannot pad: leave out --dynamic and set --height and --width, or leave out --with-preparation."
        )
    count, channels, height, width = shape
    another = (count + 2, channels, height + 37, max(width * 2 // 3, 1))
    return Graph(
        WholeGraph(segmenter, preparation, shape).eval(),
        "mask",
        example_images((_count(shape, dynamic), *shape[1:])),
        {0: _sizes("images"), 1: _sizes("height"), 2: _sizes("width")} if dynamic else None,
        [shape, another] if dynamic else [shape],
        partial(compare_masks, segmenter, preparation),
        f"the masks of segdpo predict in all but {DIFFERING:.1%} of the pixels",
    )


def compare(segmenter: Segmenter, predict: Predict, shape: Shape) -> Check:
    """Return how far `predict` is from the network on a random image of this shape."""
    image = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = segmenter(image)
    difference = (predict(image) - expected).abs().max()
    return Check(tuple(shape), float(difference), float(expected.abs().max()))


def open_onnx(content: bytes, output: str = "logits") -> Predict:
    """Return an ONNX file as a function, run by onnxruntime on the CPU."""
    with extra_named():
        import onnxruntime  # type: ignore[import-untyped]

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run([output], {INPUT: image.numpy()})[0])


def open_export(content: bytes) -> Predict:
    """Return a .pt2 file as a function."""
    module: nn.Module = torch.export.load(io.BytesIO(content)).module()
    return module


def _onnx_bytes(graph: Graph, notes: Mapping[str, str]) -> bytes:
    with extra_named():  # before the network is traced
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    made = torch.onnx.export(
        _program(graph),
        (),
        input_names=[INPUT],
        output_names=[graph.output],
        dynamo=True,
        verbose=False,
        external_data=False,
    )
    assert made is not None
    for key, text in notes.items():
        made.model.metadata_props[key] = text
    # The exporter writes only to a named file.
    with tempfile.TemporaryDirectory() as folder:
        made.save(Path(folder, "network.onnx"), external_data=False)
        return Path(folder, "network.onnx").read_bytes()


def _export_bytes(graph: Graph, notes: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(_program(graph), buffer, extra_files=dict(notes))
    return buffer.getvalue()


def _program(graph: Graph) -> torch.export.ExportedProgram:
    with torch.no_grad():
        sizes = None if graph.sizes is None else (graph.sizes,)
        return torch.export.export(graph.module, (graph.example,), dynamic_shapes=sizes)


def _sizes(name: str) -> Any:
    return torch.export.Dim(name, min=1, max=2**16)


def _count(shape: Shape, dynamic: bool) -> int:
    """Return the number of images of the example; with one, the tracer would treat it as a constant."""
    return 2 if dynamic else shape[0]
