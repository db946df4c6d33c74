"""The installed console: this package holds `console`, `cronjobs`, `jobs` and `keda` as folders.

Their names are too common for site-packages, where another distribution may have packages of the same name.
Importing this package puts its folder first on the path of the process, so that ours are found by theirs:
`autolabs` does so by the entry point below, and `python -m autolabs_console.keda` by being in here. In a
checkout the four lie beside `dispatcher`, and this folder holds nothing but this file.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from console.commands import COMMANDS  # found by the line above

__all__ = ["COMMANDS"]
