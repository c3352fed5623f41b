-- States: 1 PENDING 2 BUILDING 3 DEPLOYING 4 READY 5 IDLE 6 EXPIRED 7 RECLAIMING 8 RECLAIMED
-- 9 FAILED. End reasons: 1 TTL 2 IDLE 3 DELETED. Event kinds: 1 stage 2 log 3 state 4 failure
-- 5 lease. Statements that touch several rows lock them in the order of uid, so that replicas
-- never wait for each other in a circle.

-- name: create_function(uid, id, target, request_id, runtime, labels, spec, ttl, idle_timeout, traceparent, trace_id, parent_span_id, owner, claim, source, event)^
-- The row, its source and its first event, claimed by the replica that creates it.
WITH f AS (
  INSERT INTO functions (
    uid, id, target, request_id, runtime, labels, spec, state, ttl, idle_timeout, expire_time,
    traceparent, trace_id, parent_span_id, event_sequence, claim_owner, claim_until
  ) VALUES (
    :uid, :id, :target, :request_id, :runtime, :labels::text::jsonb, :spec, 1, :ttl,
    :idle_timeout, now() + :ttl, :traceparent, :trace_id, :parent_span_id, 1,
    :owner, now() + :claim
  ) RETURNING *
), s AS (
  INSERT INTO sources (uid, source) SELECT uid, :source::bytea FROM f
), e AS (
  INSERT INTO events (uid, sequence, time, kind, payload)
  SELECT uid, 1, now(), 3, :event::bytea FROM f
)
SELECT f.*, now() AS now FROM f;

-- name: function_by_request(request_id)^
SELECT *, now() AS now FROM functions WHERE request_id = :request_id;

-- name: function_by_id(id)^
-- The live function of an id, else the latest that had it.
SELECT *, now() AS now FROM functions WHERE id = :id
ORDER BY ended_time IS NULL DESC, create_time DESC LIMIT 1;

-- name: functions_by_uid(uids)
SELECT *, now() AS now FROM functions WHERE uid = ANY(:uids::text[]);

-- name: unreclaimed_functions(target, after, count)
-- A page of everything that is not a tombstone, by uid.
SELECT *, now() AS now FROM functions
WHERE target = :target AND state <> 8 AND uid > :after ORDER BY uid LIMIT :count;

-- name: live_by_id(ids)
SELECT id, uid FROM functions WHERE id = ANY(:ids::text[]) AND ended_time IS NULL;

-- name: list_functions(show_ended, before_time, before_uid, states, not_states, runtimes, not_runtimes, labels, not_labels, count)
SELECT *, now() AS now FROM functions
WHERE (:show_ended OR (ended_time IS NULL AND expire_time > now()))
  AND (:before_time::timestamptz IS NULL
       OR (create_time, uid) < (:before_time::timestamptz, :before_uid::text))
  AND (:states::smallint[] IS NULL OR state = ANY(:states::smallint[]))
  AND (:not_states::smallint[] IS NULL OR state <> ALL(:not_states::smallint[]))
  AND (:runtimes::text[] IS NULL OR runtime = ANY(:runtimes::text[]))
  AND (:not_runtimes::text[] IS NULL OR runtime <> ALL(:not_runtimes::text[]))
  AND labels @> :labels::text::jsonb
  AND NOT EXISTS (
    SELECT FROM unnest(:not_labels::text[]) AS n(label) WHERE labels @> n.label::jsonb
  )
ORDER BY create_time DESC, uid DESC LIMIT :count;

-- name: source_of(uid)$
SELECT source FROM sources WHERE uid = :uid;

-- name: update_function(uid, version, floor, source, spec, labels, runtime, idle_timeout, redeploy, owner, claim, replica)^
-- New words for a function that lives. A new generation is claimed by the replica that was
-- asked, unless another one is at work on the function: that one goes on by itself.
WITH o AS (
  SELECT uid FROM functions
  WHERE uid = :uid AND version = :version AND ended_time IS NULL
    AND deadline(expire_time, idle_timeout, busy, idle_from, last_use_time, :floor) > now()
  FOR UPDATE
), s AS (
  UPDATE sources SET source = :source::bytea
  FROM o WHERE sources.uid = o.uid AND :source::bytea IS NOT NULL
), f AS (
  UPDATE functions f SET
    spec = :spec, labels = :labels::text::jsonb, runtime = :runtime,
    idle_timeout = :idle_timeout,
    idle_from = CASE WHEN idle_from IS NULL THEN NULL ELSE now() END,
    generation = generation + CASE WHEN :redeploy THEN 1 ELSE 0 END,
    revision = revision + CASE WHEN :source::bytea IS NULL THEN 0 ELSE 1 END,
    artefact = CASE WHEN :source::bytea IS NULL THEN artefact END,
    build = CASE WHEN :source::bytea IS NULL THEN build ELSE '' END,
    failure = CASE WHEN :redeploy THEN NULL ELSE failure END,
    state = CASE WHEN :redeploy AND state = 9 THEN 1 ELSE state END,
    claim_owner = CASE WHEN :redeploy THEN :owner ELSE claim_owner END,
    claim_until = CASE WHEN :redeploy THEN now() + :claim ELSE claim_until END,
    update_time = now(), version = version + 1
  FROM o WHERE f.uid = o.uid
  RETURNING f.*
), n AS (
  SELECT pg_notify('mayfly_functions', :replica || ' r ' || f.uid) FROM f
)
SELECT f.*, now() AS now FROM f LEFT JOIN n ON true;

-- name: renew_function(ttl, uid, floor, replica)^
-- Decides the race of a renewal with the end of the lease: the row and this clock.
WITH f AS (
  UPDATE functions f SET
    ttl = COALESCE(:ttl::interval, ttl),
    expire_time = now() + COALESCE(:ttl::interval, ttl),
    idle_from = CASE WHEN idle_from IS NULL THEN NULL ELSE now() END,
    hold_due = true,
    update_time = now(), version = version + 1, event_sequence = event_sequence + 1
  WHERE uid = :uid AND ended_time IS NULL
    AND deadline(expire_time, idle_timeout, busy, idle_from, last_use_time, :floor) > now()
  RETURNING f.*
), e AS (
  INSERT INTO events (uid, sequence, time, kind, payload)
  SELECT uid, event_sequence, now(), 5,
    convert_to(((extract(epoch FROM expire_time) * 1000000)::bigint)::text, 'UTF8')
  FROM f
), n AS (
  SELECT pg_notify('mayfly_functions', :replica || ' r ' || f.uid) FROM f
)
SELECT f.*, now() AS now FROM f LEFT JOIN n ON true;

-- name: end_function(uid, delete, expired, deleted, replica)^
-- DeleteFunction, and the end of a lease that somebody met before the janitor did.
WITH f AS (
  UPDATE functions f SET
    state = 6,
    ended_time = LEAST(expire_time, now()),
    end_reason = CASE WHEN expire_time <= now() THEN 1 ELSE 3 END,
    update_time = now(), version = version + 1, event_sequence = event_sequence + 1
  WHERE uid = :uid AND ended_time IS NULL AND (:delete OR expire_time <= now())
  RETURNING f.*
), e AS (
  INSERT INTO events (uid, sequence, time, kind, payload)
  SELECT uid, event_sequence, now(), 3,
    CASE WHEN end_reason = 1 THEN :expired::bytea ELSE :deleted::bytea END
  FROM f
), n AS (
  SELECT pg_notify('mayfly_functions', :replica || ' r ' || f.uid) FROM f
)
SELECT f.*, now() AS now FROM f LEFT JOIN n ON true;

-- name: apply_changes(uids, owners, masks, generations, states, endpoints, builds, artefacts, failures, serving_specs, ready, failed, instances, held, ttls, idle_timeouts, releases, again, events, logs, event_uids, event_positions, event_times, event_kinds, event_payloads, replica, flag)
-- What steps and notifications changed, with the events that say so, in one statement. A change
-- with an owner holds only while that replica has the claim and the function lives; one with a
-- mask only in the states whose bits are set. What is to be done again is a new generation, unless
-- there is one under way. A renewal that the builder has not been told of yet outdoes a new ttl.
WITH c AS MATERIALIZED (
  SELECT * FROM unnest(
    :uids::text[], :owners::text[], :masks::integer[], :generations::integer[],
    :states::smallint[], :endpoints::text[],
    :builds::text[], :artefacts::bytea[], :failures::bytea[], :serving_specs::bytea[],
    :ready::integer[], :failed::integer[], :instances::integer[], :held::boolean[],
    :ttls::interval[], :idle_timeouts::interval[], :releases::boolean[], :again::boolean[],
    :events::integer[], :logs::integer[]
  ) AS c(
    uid, owner, mask, generation, state, endpoint, build, artefact, failure, serving_spec,
    ready, failed, instances, held, ttl, idle_timeout, release, again, events,
    logs
  )
), locked AS MATERIALIZED (
  SELECT f.uid FROM functions f JOIN c USING (uid) ORDER BY f.uid FOR UPDATE OF f
), f AS (
  UPDATE functions f SET
    state = COALESCE(c.state, f.state),
    endpoint = COALESCE(c.endpoint, f.endpoint),
    build = COALESCE(c.build, f.build),
    artefact = COALESCE(c.artefact, f.artefact),
    failure = CASE WHEN c.failure = ''::bytea THEN NULL ELSE COALESCE(c.failure, f.failure) END,
    serving_spec = COALESCE(c.serving_spec, f.serving_spec),
    generation = f.generation + (
      c.again IS TRUE AND f.generation <= GREATEST(f.ready_generation, f.failed_generation)
    )::integer,
    serving_build =
      CASE WHEN c.serving_spec IS NULL THEN f.serving_build ELSE COALESCE(c.build, f.build) END,
    serving_artefact = CASE
      WHEN c.serving_spec IS NULL THEN f.serving_artefact ELSE COALESCE(c.artefact, f.artefact)
    END,
    ready_generation = COALESCE(c.ready, f.ready_generation),
    failed_generation = COALESCE(c.failed, f.failed_generation),
    idle_from = COALESCE(
      f.idle_from,
      CASE WHEN c.ready IS NOT NULL OR c.failed IS NOT NULL THEN now() END
    ),
    instances = COALESCE(c.instances, f.instances),
    hold_due = COALESCE(NOT c.held, f.hold_due),
    ttl = CASE WHEN f.hold_due THEN f.ttl ELSE COALESCE(c.ttl, f.ttl) END,
    expire_time = CASE
      WHEN f.hold_due OR c.ttl IS NULL THEN f.expire_time ELSE f.create_time + c.ttl
    END,
    idle_timeout = COALESCE(c.idle_timeout, f.idle_timeout),
    claim_owner = CASE WHEN c.release THEN NULL ELSE f.claim_owner END,
    claim_until = CASE WHEN c.release THEN NULL ELSE f.claim_until END,
    update_time = CASE WHEN c.state IS NULL THEN f.update_time ELSE now() END,
    version = f.version + CASE WHEN num_nonnulls(
      c.state, c.endpoint, c.build, c.artefact, c.failure, c.serving_spec, c.ready, c.failed,
      c.held, c.ttl, c.idle_timeout, c.release, c.again
    ) > 0 THEN 1 ELSE 0 END,
    event_sequence = f.event_sequence + c.events,
    log_lines = f.log_lines + c.logs
  FROM c JOIN locked USING (uid)
  WHERE f.uid = c.uid
    AND (c.owner IS NULL OR (f.claim_owner = c.owner AND f.ended_time IS NULL))
    AND (c.generation IS NULL OR c.generation = f.generation)
    AND (c.mask IS NULL OR ((1 << f.state) & c.mask) <> 0)
  RETURNING f.*
), e AS (
  INSERT INTO events (uid, sequence, time, kind, payload)
  SELECT v.uid, f.event_sequence - c.events + v.position, v.time, v.kind, v.payload
  FROM unnest(
    :event_uids::text[], :event_positions::integer[], :event_times::timestamptz[],
    :event_kinds::smallint[], :event_payloads::bytea[]
  ) AS v(uid, position, time, kind, payload)
  JOIN f USING (uid) JOIN c USING (uid)
), n AS (
  SELECT pg_notify('mayfly_functions', :replica || :flag || string_agg(f.uid, ',')) FROM f
  HAVING count(*) > 0
)
SELECT f.*, now() AS now FROM f LEFT JOIN n ON true;

-- name: trim_logs(uids, keep)!
-- Keeps the newest lines of functions that have written too many.
WITH full_ones AS MATERIALIZED (
  SELECT uid FROM functions WHERE uid = ANY(:uids::text[]) ORDER BY uid FOR UPDATE
), gone AS (
  DELETE FROM events e USING full_ones
  WHERE e.uid = full_ones.uid AND e.kind = 2 AND e.sequence <= (
    SELECT sequence FROM events l WHERE l.uid = full_ones.uid AND l.kind = 2
    ORDER BY sequence DESC OFFSET :keep LIMIT 1
  )
)
UPDATE functions f SET log_lines = LEAST(f.log_lines, :keep) FROM full_ones
WHERE f.uid = full_ones.uid;

-- name: claim_work(target, owner, busy, count, claim)
-- Functions that have a next step and nobody at work on it.
WITH due AS (
  SELECT uid FROM functions
  WHERE target = :target AND ended_time IS NULL AND expire_time > now()
    AND (generation > GREATEST(ready_generation, failed_generation) OR hold_due)
    AND (claim_until IS NULL OR claim_until < now() OR claim_owner = :owner)
    AND uid <> ALL(:busy::text[])
  ORDER BY create_time LIMIT :count FOR UPDATE SKIP LOCKED
)
UPDATE functions f SET claim_owner = :owner, claim_until = now() + :claim
FROM due WHERE f.uid = due.uid RETURNING f.*, now() AS now;

-- name: claim_one(owner, claim, uid)^
WITH f AS (
  UPDATE functions f SET claim_owner = :owner, claim_until = now() + :claim
  WHERE uid = :uid AND ended_time IS NULL
    AND (claim_until IS NULL OR claim_until < now() OR claim_owner = :owner)
  RETURNING f.*
)
SELECT f.*, now() AS now FROM f;

-- name: extend_claims(uids, owner, claim)
-- Keeps the claims of functions that are being worked on; those that are not returned are lost.
WITH locked AS MATERIALIZED (
  SELECT uid FROM functions
  WHERE uid = ANY(:uids::text[]) AND claim_owner = :owner AND ended_time IS NULL
  ORDER BY uid FOR UPDATE
)
UPDATE functions f SET claim_until = now() + :claim
FROM locked WHERE f.uid = locked.uid RETURNING f.uid;

-- name: release_claims(owner)!
-- What a replica that ends was at work on is free at once, and the others are told.
WITH locked AS MATERIALIZED (
  SELECT uid FROM functions
  WHERE claim_owner = :owner AND ended_time IS NULL ORDER BY uid FOR UPDATE
), f AS (
  UPDATE functions f SET claim_owner = NULL, claim_until = NULL, version = version + 1
  FROM locked WHERE f.uid = locked.uid RETURNING f.uid
), batches AS (
  SELECT uid, (row_number() OVER () - 1) / 400 AS batch FROM f
), told AS (
  SELECT batch, string_agg(uid, ',') AS uids FROM batches GROUP BY batch
)
SELECT pg_notify('mayfly_functions', :owner || ' r ' || uids) FROM told;

-- name: events_after(after, count, uid)
-- A function's events from one on, beside how far the function is; one row without an event
-- when there are none.
SELECT f.state, f.generation, f.ready_generation, f.failed_generation, f.event_sequence,
  f.expire_time, (f.ended_time IS NULL AND f.expire_time <= now()) AS overdue,
  e.sequence, e.time, e.kind, e.payload
FROM functions f LEFT JOIN LATERAL (
  SELECT * FROM events WHERE uid = f.uid AND sequence > :after ORDER BY sequence LIMIT :count
) e ON true
WHERE f.uid = :uid ORDER BY e.sequence;

-- name: logs_after(after, count, uid)
SELECT f.state, e.sequence, e.time, e.payload
FROM functions f LEFT JOIN LATERAL (
  SELECT * FROM events WHERE uid = f.uid AND kind = 2 AND sequence > :after
  ORDER BY sequence LIMIT :count
) e ON true
WHERE f.uid = :uid ORDER BY e.sequence;

-- name: log_start(uid, tail)$
-- The sequence number before the last lines of a function.
SELECT sequence FROM events WHERE uid = :uid AND kind = 2
ORDER BY sequence DESC OFFSET :tail LIMIT 1;

-- name: begin_reclaim(uids, floor, expired, idle, reclaiming, started, replica)
-- Ends what has come to its end by this clock, and says of each whether it did.
WITH locked AS MATERIALIZED (
  SELECT uid, CASE WHEN ended_time IS NULL THEN 3 WHEN state = 6 THEN 2 ELSE 0 END AS news
  FROM functions
  WHERE uid = ANY(:uids::text[]) AND state <> 8 AND (
    ended_time IS NOT NULL
    OR deadline(expire_time, idle_timeout, busy, idle_from, last_use_time, :floor) <= now()
  )
  ORDER BY uid FOR UPDATE
), f AS (
  UPDATE functions f SET
    state = 7,
    end_reason = CASE
      WHEN end_reason <> 0 THEN end_reason WHEN expire_time <= now() THEN 1 ELSE 2
    END,
    ended_time = COALESCE(
      ended_time, deadline(expire_time, idle_timeout, busy, idle_from, last_use_time, :floor)
    ),
    claim_owner = NULL, claim_until = NULL, hold_due = false,
    update_time = now(), version = version + 1, event_sequence = event_sequence + locked.news
  FROM locked WHERE f.uid = locked.uid
  RETURNING f.*, locked.news
), e AS (
  INSERT INTO events (uid, sequence, time, kind, payload)
  SELECT f.uid, f.event_sequence - 3 + v.position, now(), v.kind, CASE v.position
      WHEN 1 THEN CASE f.end_reason WHEN 1 THEN :expired::bytea ELSE :idle::bytea END
      ELSE v.payload
    END
  FROM f JOIN (
    VALUES (1, 3, NULL::bytea), (2, 3, :reclaiming::bytea), (3, 1, :started::bytea)
  ) AS v(position, kind, payload) ON v.position > 3 - f.news
), n AS (
  SELECT pg_notify('mayfly_functions', :replica || ' r ' || string_agg(f.uid, ',')) FROM f
  HAVING count(*) > 0
)
SELECT f.*, now() AS now FROM f LEFT JOIN n ON true;

-- name: finish_reclaim(uids, specs, outcomes, finished, reclaimed, replica)
-- What is left of a function is this row: no source, no environment variables, no address.
WITH c AS MATERIALIZED (
  SELECT * FROM unnest(:uids::text[], :specs::bytea[], :outcomes::bytea[]) AS c(uid, spec, outcome)
), locked AS MATERIALIZED (
  SELECT f.uid FROM functions f JOIN c USING (uid) WHERE f.state = 7 ORDER BY f.uid FOR UPDATE OF f
), f AS (
  UPDATE functions f SET
    state = 8, reclaim_time = now(), spec = c.spec, outcome = c.outcome,
    artefact = NULL, serving_artefact = NULL, serving_spec = NULL, endpoint = '', instances = 0,
    busy = false, update_time = now(), version = version + 1, event_sequence = event_sequence + 2
  FROM c JOIN locked USING (uid) WHERE f.uid = c.uid
  RETURNING f.*
), s AS (
  DELETE FROM sources USING f WHERE sources.uid = f.uid
), u AS (
  DELETE FROM usage USING f WHERE usage.uid = f.uid
), e AS (
  INSERT INTO events (uid, sequence, time, kind, payload)
  SELECT f.uid, f.event_sequence - 2 + v.position, now(), v.kind, v.payload
  FROM f, (VALUES (1, 1, :finished::bytea), (2, 3, :reclaimed::bytea))
    AS v(position, kind, payload)
), n AS (
  SELECT pg_notify('mayfly_functions', :replica || ' r ' || string_agg(f.uid, ',')) FROM f
  HAVING count(*) > 0
)
SELECT f.*, now() AS now FROM f LEFT JOIN n ON true;

-- name: deadlines_of(floor, uids)
-- When functions end as far as is known now, for those that were asked for and have not ended.
SELECT uid, deadline(expire_time, idle_timeout, busy, idle_from, last_use_time, :floor) AS until
FROM functions WHERE uid = ANY(:uids::text[]) AND ended_time IS NULL;

-- name: forget_tombstones(retention, count)
-- Tombstones whose time is over vanish with their events and spans.
WITH old AS (
  SELECT uid, trace_id FROM functions
  WHERE state = 8 AND reclaim_time < now() - :retention::interval
  ORDER BY reclaim_time LIMIT :count FOR UPDATE SKIP LOCKED
), f AS (
  DELETE FROM functions USING old WHERE functions.uid = old.uid
), e AS (
  DELETE FROM events USING old WHERE events.uid = old.uid
), t AS (
  DELETE FROM spans USING old WHERE spans.trace_id = old.trace_id
    AND NOT EXISTS (
      SELECT FROM functions o WHERE o.trace_id = old.trace_id AND o.uid <> ALL(
        SELECT uid FROM old
      )
    )
)
SELECT uid FROM old;

-- name: delete_stray_rows(uids)
-- Rows of functions that are no more; what an interrupted deletion could have left.
WITH e AS (
  DELETE FROM events WHERE uid = ANY(:uids::text[])
    AND NOT EXISTS (SELECT FROM functions f WHERE f.uid = events.uid)
), s AS (
  DELETE FROM sources WHERE uid = ANY(:uids::text[])
    AND NOT EXISTS (SELECT FROM functions f WHERE f.uid = sources.uid)
)
SELECT unnest(:uids::text[]) AS uid;

-- name: stray_rows()
SELECT 'source' AS type, s.uid FROM sources s
  WHERE NOT EXISTS (SELECT FROM functions f WHERE f.uid = s.uid AND f.state <> 8)
UNION ALL
SELECT DISTINCT 'events', e.uid FROM events e
  WHERE NOT EXISTS (SELECT FROM functions f WHERE f.uid = e.uid);

-- name: live_rows(uids)
SELECT id, uid, state FROM functions
WHERE state <> 8 AND (:uids::text[] IS NULL OR uid = ANY(:uids::text[]));

-- name: seen_gateway(gateway, replica)!
INSERT INTO gateways (gateway, replica, seen_time) VALUES (:gateway, :replica, now())
ON CONFLICT (gateway) DO UPDATE SET replica = :replica, seen_time = now();

-- name: gateway_replicas(replica, within)
-- Other replicas that a gateway is connected to.
SELECT DISTINCT replica FROM gateways
WHERE replica <> :replica AND seen_time > now() - :within::interval;

-- name: recent_gateways(within)
-- Gateways that were connected a moment ago, to whichever replica.
SELECT gateway FROM gateways WHERE seen_time > now() - :within::interval;

-- name: report_usage(uids, in_flight, gateway)
-- Everything that a gateway has open now; returns what it has open no more.
WITH now_open AS (
  SELECT * FROM unnest(:uids::text[], :in_flight::bigint[]) AS o(uid, in_flight)
), gone AS (
  DELETE FROM usage WHERE gateway = :gateway AND uid NOT IN (SELECT uid FROM now_open)
  RETURNING uid
), kept AS (
  INSERT INTO usage (gateway, uid, in_flight)
  SELECT :gateway, uid, in_flight FROM now_open
  ON CONFLICT (gateway, uid) DO UPDATE SET in_flight = EXCLUDED.in_flight
)
SELECT uid FROM gone;

-- name: record_use(uids, times, replica)
-- The last use of functions, and whether any gateway has something open on them.
WITH c AS MATERIALIZED (
  SELECT * FROM unnest(:uids::text[], :times::timestamptz[]) AS c(uid, time)
), locked AS MATERIALIZED (
  SELECT f.uid, EXISTS (SELECT FROM usage u WHERE u.uid = f.uid AND u.in_flight > 0) AS busy,
    f.busy AS was_busy
  FROM functions f JOIN c USING (uid) WHERE f.ended_time IS NULL ORDER BY f.uid FOR UPDATE OF f
), f AS (
  UPDATE functions f SET
    last_use_time = GREATEST(f.last_use_time, c.time),
    busy = locked.busy,
    version = f.version + CASE WHEN f.busy = locked.busy THEN 0 ELSE 1 END
  FROM c JOIN locked USING (uid) WHERE f.uid = c.uid
  RETURNING f.*, locked.was_busy
), n AS (
  SELECT pg_notify('mayfly_functions', :replica || ' r ' || string_agg(f.uid, ',')) FROM f
  WHERE f.busy <> f.was_busy HAVING count(*) > 0
)
SELECT f.*, now() AS now FROM f LEFT JOIN n ON true;

-- name: write_inventory(question, gateway, function_ids)!
INSERT INTO inventories (question, gateway, function_ids)
VALUES (:question, :gateway, :function_ids::text[])
ON CONFLICT (question, gateway) DO UPDATE SET function_ids = :function_ids::text[];

-- name: take_inventories(question)
DELETE FROM inventories WHERE question = :question RETURNING gateway, function_ids;

-- name: forget_inventories(after)!
-- Answers that nobody waited for.
DELETE FROM inventories WHERE time < now() - :after::interval;

-- name: take_role(role, replica, lease)$
-- Takes a role that is free, or keeps one that is held; true when it is held now.
INSERT INTO roles (role, replica, held_until) VALUES (:role, :replica, now() + :lease::interval)
ON CONFLICT (role) DO UPDATE SET replica = :replica, held_until = now() + :lease::interval
WHERE roles.replica = :replica OR roles.held_until < now()
RETURNING true;

-- name: leave_role(role, replica)!
DELETE FROM roles WHERE role = :role AND replica = :replica;

-- name: forget_gateways(after)
-- Gateways that have not been seen for long: what they had open is not open any more.
WITH lost AS (
  DELETE FROM gateways WHERE seen_time < now() - :after::interval RETURNING gateway
)
DELETE FROM usage USING lost WHERE usage.gateway = lost.gateway RETURNING usage.uid;

-- name: add_spans(trace_ids, span_ids, parent_span_ids, names, services, start_times, end_times, attributes, errors, most)!
-- Spans of traces that functions have, at most `most` a trace.
INSERT INTO spans (
  trace_id, span_id, parent_span_id, name, service, start_time, end_time, attributes, error
)
SELECT v.trace_id, v.span_id, v.parent_span_id, v.name, v.service, v.start_time, v.end_time,
  v.attributes::jsonb, v.error
FROM unnest(
  :trace_ids::text[], :span_ids::text[], :parent_span_ids::text[], :names::text[],
  :services::text[], :start_times::timestamptz[], :end_times::timestamptz[],
  :attributes::text[], :errors::text[]
) AS v(trace_id, span_id, parent_span_id, name, service, start_time, end_time, attributes, error)
WHERE EXISTS (SELECT FROM functions f WHERE f.trace_id = v.trace_id)
  AND (SELECT count(*) FROM spans s WHERE s.trace_id = v.trace_id) < :most
ON CONFLICT DO NOTHING;

-- name: spans_of(trace_id)
SELECT * FROM spans WHERE trace_id = :trace_id ORDER BY start_time, end_time DESC;

-- name: is_there()$
SELECT 1;

-- name: serving_functions(target)
-- Functions that serve and are not being changed, with what is open on them over all gateways and
-- the seconds since they were last used, or began to serve.
SELECT f.uid, f.ready_generation, f.endpoint, now() AS now,
  COALESCE(u.in_flight, 0)::bigint AS in_flight,
  extract(epoch FROM now() - GREATEST(f.last_use_time, f.idle_from, f.update_time))::float8
    AS unused
FROM functions f
LEFT JOIN (SELECT uid, sum(in_flight) AS in_flight FROM usage GROUP BY uid) u USING (uid)
WHERE f.target = :target AND f.state = 4 AND f.ended_time IS NULL AND f.expire_time > now()
  AND f.generation <= GREATEST(f.ready_generation, f.failed_generation);

-- name: serving_builds(target)
-- What functions run that serve and are not being changed.
SELECT uid, serving_build FROM functions
WHERE target = :target AND state IN (4, 5) AND serving_build <> ''
  AND ended_time IS NULL AND expire_time > now()
  AND generation <= GREATEST(ready_generation, failed_generation);

-- name: is_still_unused(since, uid)$
-- Whether a function that was just taken off the routes has not been used since a moment.
SELECT f.state = 5 AND f.endpoint = '' AND COALESCE(f.last_use_time <= :since, true)
  AND NOT EXISTS (SELECT FROM usage u WHERE u.uid = f.uid AND u.in_flight > 0)
FROM functions f WHERE f.uid = :uid;
