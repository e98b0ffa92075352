"""`python tools/train.py ...` is `volseg train ...`."""

import sys

from volseg.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
