"""`python -m mtlkit`: the command `mtlkit`."""

import sys

from mtlkit.cli import main

sys.exit(main())
