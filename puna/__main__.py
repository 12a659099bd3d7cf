"""`python -m puna` is `puna`."""

import sys

from puna.cli import main

sys.exit(main())
