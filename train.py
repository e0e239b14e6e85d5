"""Train a segmentation model from preferences between masks; the same as `segdpo train`.

python train.py loss=hinge_anchor
python train.py -m loss=dpo,lse_anchor,hinge_anchor seed=0,1,2
"""

import sys

from segdpo.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
