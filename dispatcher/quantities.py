"""Read quantities of CPU, memory and storage as Kubernetes writes them, in the forms that labs use.

Backend and containers read them alike, here alone. What is read here Kubernetes takes too, for the same
amount (https://pkg.go.dev/k8s.io/apimachinery/pkg/api/resource#ParseQuantity).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from decimal import Decimal

_FORM = re.compile(r"([0-9]+(?:\.[0-9]+)?)(m|[kMGT]|[KMGT]i)?")
_FACTORS: dict[str | None, str | int] = {
    "m": "0.001", None: 1,
    "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40,
}  # fmt: skip


def parse_quantity(text: str) -> Decimal:
    """Return the value in cores or bytes. Raises ValueError for anything else."""
    from decimal import Decimal  # a backend that names no memory does not pay for it

    match = _FORM.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a quantity such as 500m, 2 or 1Gi")
    return Decimal(match[1]) * Decimal(_FACTORS[match[2]])
