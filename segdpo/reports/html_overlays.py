"""The pictures of evaluation/overlays/: where the policy got better and where worse, to lie inside the report."""

import base64
import re
import struct
from dataclasses import dataclass
from pathlib import Path

SIGNATURE, END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
NAME = re.compile(r"(better|worse|lowest)_(\d+)_(.+)\.png", re.DOTALL)


@dataclass(frozen=True, eq=False)
class Overlay:
    """A whole PNG: the `rank`-th image that got `kind` ("better", "worse"; of one network: "lowest"), and its size."""

    kind: str
    rank: int
    name: str
    content: bytes

    @property
    def uri(self) -> str:
        """The picture as text that needs no file beside it."""
        return f"data:image/png;base64,{base64.b64encode(self.content).decode('ascii')}"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, as the file's header says."""
        width, height = struct.unpack(">II", self.content[16:24])
        return int(width), int(height)


def read_overlays(folder: Path, missing: list[str]) -> list[Overlay]:
    """Return the pictures by kind and rank; those that are cut are named in `missing`."""
    found, cut = [], []
    for path in folder.glob("*.png"):
        match = NAME.fullmatch(path.name)
        if not match:
            continue
        content = path.read_bytes() if path.is_file() else b""
        # A data: address of anything but a picture has no place in a page that others open.
        if content.startswith(SIGNATURE) and content.endswith(END):
            found.append(Overlay(match[1], int(match[2]), match[3], content))
        else:
            cut.append(path.name)
    if cut:
        missing.append(f"evaluation/overlays: {', '.join(sorted(cut))} cut or no PNG; left out.")
    if not found and not cut:
        missing.append("evaluation/overlays/ has no pictures: better and worse images are listed, but not shown.")
    return sorted(found, key=lambda overlay: (overlay.kind, overlay.rank))
