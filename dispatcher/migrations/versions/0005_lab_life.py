"""Add how long a lab may be extended, what takes its place, who starts it, and whom to tell of its end."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Let a notification be about more than a failure, too.

    A lab that is there already may be extended until eight hours from now: a default by row would rewrite
    the table. The index of the ledger keeps those waiting who write into it while it is built; where that is
    too long, make it before the upgrade, CONCURRENTLY and under this name. The labs come last: nobody reads
    them from there to the commit.
    """
    op.execute("""
        CREATE INDEX IF NOT EXISTS task_ledger_task_name_id_idx ON task_ledger (task_name, id)
        WHERE lab_instance_id IS NULL
    """)
    op.execute("""
        ALTER TABLE notifications
            ALTER COLUMN lab_instance_id DROP NOT NULL,
            ALTER COLUMN error_category DROP NOT NULL,
            ADD COLUMN occasion timestamptz,
            ADD COLUMN facts jsonb NOT NULL DEFAULT '{}',
            DROP CONSTRAINT notifications_lab_instance_id_cause_key,
            DROP CONSTRAINT notifications_told_check,
            ADD CONSTRAINT notifications_told_check
                CHECK (told IN ('student', 'teacher', 'admin', 'nobody'))
    """)
    op.execute("""
        CREATE UNIQUE INDEX notifications_once_idx
        ON notifications (coalesce(lab_instance_id, 0), cause, coalesce(occasion, '-infinity'))
    """)
    op.execute("""
        ALTER TABLE lab_instances
            ADD COLUMN max_expires_at timestamptz NOT NULL DEFAULT now() + interval '8 hours',
            ADD COLUMN extended_to timestamptz,
            ADD COLUMN restart_of bigint,
            ADD COLUMN starting_run uuid,
            ADD CONSTRAINT lab_instances_restart_of_key UNIQUE (restart_of)
    """)
