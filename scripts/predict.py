"""Predict masks for an image or a folder of images of any size.

The same as `segdpo predict`; `python scripts/predict.py --help` has the options.
"""

import sys

from segdpo.cli import predict

if __name__ == "__main__":
    sys.exit(predict(sys.argv[1:]))
