"""Save a model with a model card as a folder, and upload it to the Hugging Face hub.

The same as `segdpo publish`; `python scripts/publish.py --help` has the options.
"""

import sys

from segdpo.cli import main

if __name__ == "__main__":
    sys.exit(main(["publish", *sys.argv[1:]]))
