"""Compute in SQL the label that only one lab's objects have (jobs.config.naming.OBJECT).

It is made of id, lab_id, student_id and created_at: an id that comes again, after a restore of the database
or a failover that lost rows, comes with another time. In SQL: no language holds all times that a row can.
"""

from __future__ import annotations

# Digits of SHA-256 that a label has: with 80 bits two labs of one id never meet.
DIGITS = 20
# Write a time in one form, whatever DateStyle and time zone the session has; to_char has none for infinity.
_CREATED = (
    "CASE WHEN isfinite(created_at)"
    " THEN to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US BC')"
    " ELSE CAST(created_at AS text) END"
)
# The label of a row of lab_instances (an expression).
OBJECT_LABEL = (
    "left(encode(sha256(convert_to("
    f"concat_ws(' ', lab_instances.id, lab_id, student_id, {_CREATED}), 'UTF8')), 'hex'), {DIGITS})"
)
