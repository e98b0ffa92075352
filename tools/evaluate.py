"""`python tools/evaluate.py ...` is `volseg evaluate ...`."""

import sys

from volseg.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
