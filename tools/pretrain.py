"""`python tools/pretrain.py ...` is `volseg pretrain ...`."""

import sys

from volseg.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["pretrain", *sys.argv[1:]]))
