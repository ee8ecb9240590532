"""`python -m affinage`."""

from __future__ import annotations

import sys

from affinage.cli import main

if __name__ == "__main__":
    sys.exit(main())
