"""`python tools/plan.py ...` is `volseg plan ...`."""

import sys

from volseg.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["plan", *sys.argv[1:]]))
