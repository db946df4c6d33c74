"""Kept for one release: manifests that are installed call `python3 -m jobs.configs upload`.

The module is jobs.config.stored.
"""

from __future__ import annotations

import sys

from jobs.config.stored import main

if __name__ == "__main__":
    sys.exit(main())
