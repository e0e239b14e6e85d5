"""Write a trained network as ONNX or as a torch.export program, checked against the network itself.

    python scripts/export.py MODEL network.onnx --height 256 --width 256
    python scripts/export.py MODEL network.pt2 --format torch_export --dynamic

MODEL is a run's folder, a .safetensors or a .ckpt. What goes in and comes out: docs/deploy.md.
"""

import argparse
import json
import sys
import warnings
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from segdpo.inference import FORMATS, channels_of, export, open_segmenter


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    options = _parse(arguments)
    console = Console(stderr=True, soft_wrap=True)
    try:
        segmenter, description = open_segmenter(options.model, trusted=options.trust)
        shape = (options.batch, channels_of(segmenter), options.height, options.width)
        notes = {key: json.dumps(description[key]) for key in ("classes", "mean", "std", "model")}
        with console.status("tracing the network"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporters, about their own insides
            checks = export(segmenter, options.out, shape, format=options.format, dynamic=options.dynamic, notes=notes)
    except (OSError, ValueError) as error:
        console.print(f"[red]error[/red] {escape(str(error))}")
        return 1
    for check in checks:
        print(
            f"{' × '.join(map(str, check.shape))}: largest difference {check.difference:.3g}, "
            f"largest logit {check.largest:.3g}"
        )
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB")
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a run's folder, a .safetensors or a .ckpt")
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument("--format", choices=FORMATS, default="onnx")
    parser.add_argument("--height", type=int, default=256)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1, help="images at once")
    parser.add_argument(
        "--dynamic", action="store_true", help="any number and size of images (multiples of the network)"
    )
    parser.add_argument("--trust", action="append", default=[], metavar="PACKAGE", help="of your own networks")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
