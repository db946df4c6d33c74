"""Programs that a test interrupts."""

from __future__ import annotations

#: Before a command: a shell's background job, as tests may be, ignores Ctrl-C, and so would what it starts.
HEARS_CTRL_C = ("env", "--default-signal=INT")
