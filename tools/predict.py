"""`python tools/predict.py ...` is `volseg predict ...`."""

import sys

from volseg.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
