"""Cut volumes in nnU-Net's folder layout (NIfTI) into slices: images/ID.png, masks/ID.png, as data=plain reads them.

    python scripts/cut_slices.py data/hippocampus outputs/hippocampus_slices --slices 2

The slices of a volume lie evenly along the second axis, where the labels are; intensities are stretched to 8 bits from
the volume's 1st to its 99th percentile. An id is VOLUME_sNN, so that group_pattern='^(.*)_s' keeps a volume together.
"""

import argparse
import gzip
import struct
from pathlib import Path

import numpy as np
from rich.progress import track

from segdpo.data import encode_image, encode_mask
from segdpo.files import write_atomically

SUFFIX = ".nii.gz"
# NIfTI-1's codes of data types.
TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2"}


def read_volume(path: Path) -> np.ndarray:
    """Return the voxels of a NIfTI-1 file, [x, y, z]."""
    content = gzip.decompress(path.read_bytes())
    order = "<" if struct.unpack("<i", content[:4])[0] == 348 else ">"
    shape = struct.unpack(f"{order}4h", content[40:48])[1:]
    kind, offset = struct.unpack(f"{order}h", content[70:72])[0], struct.unpack(f"{order}f", content[108:112])[0]
    if content[344:347] != b"n+1" or kind not in TYPES:
        raise ValueError(f"{path}: Expected a NIfTI-1 volume of numbers but got data type {kind}.")
    return np.frombuffer(content, f"{order}{TYPES[kind]}", int(np.prod(shape)), int(offset)).reshape(shape, order="F")


def stretched(volume: np.ndarray) -> np.ndarray:
    """Return the intensities as uint8: the 1st percentile is 0, the 99th 255."""
    low, high = np.percentile(volume, [1, 99])
    return np.asarray(np.clip(np.round((volume - low) * (255 / max(high - low, 1e-6))), 0, 255), np.uint8)


def main() -> None:
    """Cut every volume that has labels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volumes", type=Path, help="the folder with imagesTr/ and labelsTr/")
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("--slices", type=int, default=2, help="of each volume (2)")
    options = parser.parse_args()
    labels = sorted((options.volumes / "labelsTr").glob(f"*{SUFFIX}"))
    for path in track(labels, "cutting"):
        name = path.name.removesuffix(SUFFIX)
        mask = read_volume(path).astype(np.uint8)
        image = stretched(read_volume(options.volumes / "imagesTr" / f"{name}_0000{SUFFIX}"))
        labelled = np.flatnonzero(mask.any((0, 2)))
        places = np.linspace(labelled[0], labelled[-1], options.slices + 2)[1:-1].round().astype(int)
        for place in places.tolist():
            file = f"{name}_s{place:02d}.png"
            write_atomically(options.out / "images" / file, encode_image(image[:, place, :, None]).data)
            write_atomically(options.out / "masks" / file, encode_mask(mask[:, place]))
    print(f"{options.out}: {options.slices} slices of {len(labels)} volumes")


if __name__ == "__main__":
    main()
