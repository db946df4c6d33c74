"""`autolabs …` that says on the last line of standard error how much memory it had at most, in MiB.

From /proc, because the ru_maxrss of a child counts what its parent had when it was started.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from console.__main__ import main

if __name__ == "__main__":
    code = main()
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    print(round(int(found[1]) / 1024) if found else "unknown", file=sys.stderr)
    sys.exit(code)
