"""`python -m jobs`, or another module, on a node whose clock is wrong by TEST_SKEW_S s; it is in no image.

Shifted are time.time, time.time_ns and datetime's now, all that jobs and its libraries ask for the time in
Python. libfaketime would shift the libraries in C as well, but with it waiting on a lock never ends
(Debian's 0.9.10, Python 3.11).
"""

from __future__ import annotations

import datetime
import os
import runpy
import sys
import time
from typing import Any

_real_datetime = datetime.datetime
_real_time, _real_time_ns = time.time, time.time_ns


class _Meta(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _real_datetime)


def _install(skew_s: int) -> None:
    skew = datetime.timedelta(seconds=skew_s)

    class SkewedDatetime(_real_datetime, metaclass=_Meta):
        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            return _real_datetime(*args, **kwargs)

        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Any:
            return _real_datetime.now(tz) + skew

        @classmethod
        def fromisoformat(cls, text: str) -> Any:
            return _real_datetime.fromisoformat(text)

        @classmethod
        def fromtimestamp(cls, seconds: float, tz: datetime.tzinfo | None = None) -> Any:
            return _real_datetime.fromtimestamp(seconds, tz)

    setattr(datetime, "datetime", SkewedDatetime)  # noqa: B010  # mypy knows that one does not do this
    setattr(time, "time", lambda: _real_time() + skew_s)  # noqa: B010
    setattr(time, "time_ns", lambda: _real_time_ns() + skew_s * 1_000_000_000)  # noqa: B010


if __name__ == "__main__":
    _install(int(os.environ["TEST_SKEW_S"]))
    # Without a word: a container.
    module, sys.argv[1:] = (sys.argv[1:2] or ["jobs"])[0], sys.argv[2:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
