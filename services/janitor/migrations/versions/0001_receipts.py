"""Receipts and sweeps."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    # A row exists before the owner is asked to remove anything: a janitor that dies in between
    # finds it again, and no receipt is lost.
    op.execute(
        """
        CREATE TABLE receipts (
            resource     text        NOT NULL,
            uid          text        NOT NULL,
            name         text        NOT NULL,
            owner        text        NOT NULL,
            deadline     timestamptz NOT NULL,
            traceparent  text        NOT NULL DEFAULT '',
            intent_time  timestamptz NOT NULL DEFAULT now(),
            reclaim_time timestamptz,
            verified     boolean     NOT NULL DEFAULT false,
            payload      bytea,
            PRIMARY KEY (resource, uid)
        )
        """
    )
    op.execute(
        "CREATE INDEX receipts_newest ON receipts (reclaim_time DESC, uid DESC)"
        " WHERE payload IS NOT NULL"
    )
    op.execute("CREATE INDEX receipts_by_name ON receipts (name, reclaim_time DESC)")
    op.execute("CREATE INDEX receipts_unfinished ON receipts (intent_time) WHERE NOT verified")
    op.execute(
        """
        CREATE TABLE sweeps (
            id          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            start_time  timestamptz NOT NULL,
            end_time    timestamptz NOT NULL,
            dry_run     boolean     NOT NULL,
            found       integer     NOT NULL,
            removed     integer     NOT NULL,
            unreachable text[]      NOT NULL
        )
        """
    )
    op.execute("CREATE INDEX sweeps_newest ON sweeps (end_time DESC)")
