"""Builds, holds, events; environments and resolutions."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    # `id` follows from the content; `uid` is one incarnation's, and names what it leaves on disk.
    # `state` is Build.State. `retry_time`: from when on a failure is no answer any more.
    # `ended`: being removed; whoever creates the same content begins a new incarnation.
    op.execute(
        """
        CREATE TABLE builds (
            id          text        PRIMARY KEY,
            uid         text        NOT NULL UNIQUE,
            runtime     text        NOT NULL,
            kind        text        NOT NULL,
            source      bytea,
            traceparent text        NOT NULL,
            state       smallint    NOT NULL,
            outcome     bytea       NOT NULL DEFAULT '',
            environment text,
            retry_time  timestamptz,
            attempts    integer     NOT NULL DEFAULT 0,
            claimed_by  text,
            claim_token text,
            claim_until timestamptz,
            watched     boolean     NOT NULL DEFAULT false,
            ended       boolean     NOT NULL DEFAULT false,
            create_time timestamptz NOT NULL DEFAULT now(),
            end_time    timestamptz,
            expire_time timestamptz NOT NULL
        )
        """
    )
    op.execute("CREATE INDEX builds_unfinished ON builds (create_time) WHERE state IN (1, 2)")
    op.execute("CREATE INDEX builds_newest ON builds (create_time DESC, id DESC)")
    op.execute("CREATE INDEX builds_due ON builds (expire_time)")
    op.execute("CREATE INDEX builds_ended ON builds (id) WHERE ended")
    op.execute(
        "CREATE INDEX builds_by_environment ON builds (environment) WHERE environment IS NOT NULL"
    )
    op.execute(
        """
        CREATE TABLE holds (
            build        text        NOT NULL REFERENCES builds ON DELETE CASCADE,
            function_uid text        NOT NULL,
            function     text        NOT NULL,
            expire_time  timestamptz NOT NULL,
            PRIMARY KEY (build, function_uid)
        )
        """
    )
    op.execute("CREATE INDEX holds_by_function ON holds (function_uid)")
    # One row for what came at the same time: serialized WatchBuildResponse messages.
    op.execute(
        """
        CREATE TABLE events (
            build text    NOT NULL REFERENCES builds ON DELETE CASCADE,
            first bigint  NOT NULL,
            items bytea[] NOT NULL,
            PRIMARY KEY (build, first)
        )
        """
    )
    op.execute(
        """
        CREATE TABLE environments (
            digest       text        PRIMARY KEY,
            uid          text        NOT NULL UNIQUE,
            interpreter  text        NOT NULL,
            requirements text[]      NOT NULL,
            ended        boolean     NOT NULL DEFAULT false,
            create_time  timestamptz NOT NULL DEFAULT now(),
            expire_time  timestamptz NOT NULL
        )
        """
    )
    op.execute("CREATE INDEX environments_due ON environments (expire_time)")
    op.execute(
        """
        CREATE TABLE resolutions (
            key          text        PRIMARY KEY,
            environment  text,
            requirements text[]      NOT NULL,
            resolve_time timestamptz NOT NULL DEFAULT now()
        )
        """
    )
    op.execute("CREATE INDEX resolutions_oldest ON resolutions (resolve_time)")
