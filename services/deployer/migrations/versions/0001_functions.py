"""Functions, their sources, events, use, spans; replicas."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

STATEMENTS = (
    # A function: what was asked for (spec), how far it is (state, generations), its lease.
    """
    CREATE TABLE functions (
      uid text PRIMARY KEY,
      id text NOT NULL,
      target text NOT NULL,
      request_id text,
      runtime text NOT NULL,
      labels jsonb NOT NULL,
      spec bytea NOT NULL,
      state smallint NOT NULL,
      revision integer NOT NULL DEFAULT 1,
      generation integer NOT NULL DEFAULT 1,
      ready_generation integer NOT NULL DEFAULT 0,
      failed_generation integer NOT NULL DEFAULT 0,
      build text NOT NULL DEFAULT '',
      artefact bytea,
      serving_spec bytea,
      serving_build text NOT NULL DEFAULT '',
      serving_artefact bytea,
      hold_due boolean NOT NULL DEFAULT false,
      endpoint text NOT NULL DEFAULT '',
      failure bytea,
      instances integer NOT NULL DEFAULT 0,
      ttl interval NOT NULL,
      idle_timeout interval,
      create_time timestamptz NOT NULL DEFAULT now(),
      update_time timestamptz NOT NULL DEFAULT now(),
      expire_time timestamptz NOT NULL,
      idle_from timestamptz,
      last_use_time timestamptz,
      busy boolean NOT NULL DEFAULT false,
      ended_time timestamptz,
      end_reason smallint NOT NULL DEFAULT 0,
      reclaim_time timestamptz,
      outcome bytea,
      traceparent text NOT NULL,
      trace_id text NOT NULL,
      parent_span_id text NOT NULL,
      version bigint NOT NULL DEFAULT 1,
      event_sequence bigint NOT NULL DEFAULT 0,
      log_lines integer NOT NULL DEFAULT 0,
      claim_owner text,
      claim_until timestamptz
    ) WITH (fillfactor = 70)
    """,
    "CREATE UNIQUE INDEX functions_live_id ON functions (id) WHERE ended_time IS NULL",
    "CREATE UNIQUE INDEX functions_request_id ON functions (request_id)",
    "CREATE INDEX functions_id ON functions (id, create_time DESC)",
    "CREATE INDEX functions_newest ON functions (create_time DESC, uid DESC)",
    "CREATE INDEX functions_trace ON functions (trace_id)",
    """
    CREATE INDEX functions_work ON functions (target, create_time)
      WHERE ended_time IS NULL
        AND (generation > GREATEST(ready_generation, failed_generation) OR hold_due)
    """,
    "CREATE INDEX functions_tombstones ON functions (reclaim_time) WHERE state = 8",
    "CREATE INDEX functions_ending ON functions (uid) WHERE state IN (6, 7)",
    # The source of the newest revision; gone with the lease.
    "CREATE TABLE sources (uid text PRIMARY KEY, source bytea NOT NULL)",
    """
    CREATE TABLE events (
      uid text NOT NULL,
      sequence bigint NOT NULL,
      time timestamptz NOT NULL,
      kind smallint NOT NULL,
      payload bytea NOT NULL,
      PRIMARY KEY (uid, sequence)
    )
    """,
    "CREATE INDEX events_logs ON events (uid, sequence) WHERE kind = 2",
    # Open requests and streams, as each gateway last reported them.
    """
    CREATE TABLE usage (
      gateway text NOT NULL,
      uid text NOT NULL,
      in_flight bigint NOT NULL,
      PRIMARY KEY (gateway, uid)
    )
    """,
    "CREATE INDEX usage_uid ON usage (uid)",
    """
    CREATE TABLE gateways (
      gateway text PRIMARY KEY,
      replica text NOT NULL,
      seen_time timestamptz NOT NULL
    )
    """,
    """
    CREATE TABLE spans (
      trace_id text NOT NULL,
      span_id text NOT NULL,
      parent_span_id text NOT NULL,
      name text NOT NULL,
      service text NOT NULL,
      start_time timestamptz NOT NULL,
      end_time timestamptz NOT NULL,
      attributes jsonb NOT NULL,
      error text NOT NULL,
      PRIMARY KEY (trace_id, span_id)
    )
    """,
    # The moment at which a function ends as far as is known: its lease, or, when it is not in
    # use, its idle time counted from its last use; never before `floor`, by which a deployer that
    # has just started gives the gateways the time to say what is in use.
    """
    CREATE FUNCTION deadline(
      expire_time timestamptz, idle_timeout interval, busy boolean,
      idle_from timestamptz, last_use_time timestamptz, floor timestamptz
    ) RETURNS timestamptz LANGUAGE sql IMMUTABLE AS $$
      SELECT CASE
        WHEN idle_timeout IS NULL OR busy OR idle_from IS NULL THEN expire_time
        ELSE LEAST(
          expire_time,
          GREATEST(GREATEST(idle_from, last_use_time) + idle_timeout, floor)
        )
      END
    $$
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
