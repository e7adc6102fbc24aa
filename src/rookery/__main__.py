"""`python -m rookery`: the same as the command `rookery`."""

from __future__ import annotations

import sys

from rookery.cli.main import main

sys.exit(main())
