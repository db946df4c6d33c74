"""How much may be changed at once by what looks at all labs.

A wrong kubeconfig, or an API server that answers with nothing, shows an empty cluster; a wrong DATABASE_URL
shows an empty platform or, as ids begin at 1 everywhere, other labs of the same ids.
"""

from __future__ import annotations

from dispatcher.terminal import many

#: Labs of which it says nothing that all of them are affected, where something else says that it is the
#: right place.
FEW = 3


def another_database(strange: int, matched: int) -> str | None:
    """Return why objects are not believed to be of the labs in the rows, or None.

    `strange`: labs of which an object names another lab or student than the row; `matched`: labs of which
    none does. One may be anybody's mistake; in another database it is nearly all of them.
    """
    if not strange or strange < matched:
        return None
    labs = many(strange, "lab")
    return f"{labs} with objects of another lab or student than the row: this may be another database"


def most_at_once(live: int, *, share: float, always: int) -> int:
    """Return how many of the live labs may be changed in one run."""
    return max(always, round(share * live))


def no_pods_at_all(running: int, without_pod: int, *, right_place: bool) -> str | None:
    """Return why it is not believed that no RUNNING lab has a Pod, or None if some have one.

    `right_place`: something else says that this is the cluster and namespace of the labs.
    """
    if not running or without_pod < running or (running < FEW and right_place):
        return None
    none = f"none of the {running} RUNNING labs has" if running > 1 else "the RUNNING lab has not"
    return f"{none} a Pod: this may be another cluster or namespace"
