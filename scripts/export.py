"""Write a model as ONNX or as a torch.export program, checked against the model itself.

The same as `segdpo export`; `python scripts/export.py --help` has the options.
"""

import sys

from segdpo.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
