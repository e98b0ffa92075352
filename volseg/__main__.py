"""``python -m volseg COMMAND``: the same as the command ``volseg``."""

import sys

from volseg.cli.main import main

sys.exit(main())
