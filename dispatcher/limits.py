"""How long things last at most that one part of the platform does and another one judges by. Seconds."""

from __future__ import annotations

#: No container lives longer: the longest active_deadline_s of keda.profiles. A run that began earlier and has
#: no end was killed.
CONTAINER_DEADLINE_S = 1200
#: A failure that cannot be settled, because the database or the cluster is away, is tried again within this.
COME_BACK_S = 80
