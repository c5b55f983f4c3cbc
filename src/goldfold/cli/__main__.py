"""``python -m goldfold.cli``."""

import sys

from goldfold.cli import main

sys.exit(main())
