"""`python -m puna.cli`: the same as the command `puna`."""

import sys

from puna.cli import main

sys.exit(main())
