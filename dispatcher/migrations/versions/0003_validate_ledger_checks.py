"""Hold the ledger's old rows against the checks of 0002."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Validate both checks; it reads the whole ledger, beside what others read and write."""
    op.execute("ALTER TABLE task_ledger VALIDATE CONSTRAINT task_ledger_outcome_check")
    op.execute("ALTER TABLE task_ledger VALIDATE CONSTRAINT task_ledger_finished_at_check")
