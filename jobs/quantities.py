"""Kubernetes quantities, as far as lab resources use them (dispatcher.tasks checks the form)."""

from __future__ import annotations

import re
from fractions import Fraction

_SUFFIXES: dict[str, Fraction | int] = {
    "": 1,
    "m": Fraction(1, 1000),
    "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40,
}  # fmt: skip


def parse_quantity(text: str) -> Fraction:
    """Return the value in cores or bytes. Raises ValueError for anything else."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(\D*)", text)
    if match is None or match[2] not in _SUFFIXES:
        raise ValueError(f"{text!r} is not a quantity such as 500m, 2 or 1Gi")
    return Fraction(match[1]) * _SUFFIXES[match[2]]


def less_one_millicore(cpu: str) -> str:
    """Return the next smaller amount of CPU."""
    return f"{int(parse_quantity(cpu) * 1000) - 1}m"


def share_of_cpu(limit: str, ratio: float) -> str:
    """Return a share of a CPU limit in millicores, at least one."""
    return f"{max(1, int(parse_quantity(limit) * 1000 * Fraction(ratio)))}m"


def share_of_memory(limit: str, ratio: float) -> str:
    """Return a share of a memory limit in bytes, at least 1 MiB or the limit."""
    total = int(parse_quantity(limit))
    return str(min(total, max(2**20, int(total * ratio))))
