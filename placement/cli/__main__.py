"""So that ``python -m placement.cli`` is the command."""

import sys

from placement.cli.main import main

sys.exit(main())
