"""The same as `segdpo train`, as a file: Lightning starts the further processes of trainer=ddp with it."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # the folder of this file, where packages have names that others may have, such as `data`
    from segdpo.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))
