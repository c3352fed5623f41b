-- States: 1 QUEUED, 2 RUNNING, 3 SUCCEEDED, 4 FAILED (Build.State).

-- name: create_build(id, uid, runtime, kind, source, traceparent, state, replica, token, claim, patience, retention, function_uid, function, until)^
-- Makes the build, or returns the one of the same content, held for the function in either case.
-- A failure whose answer is too old, and one that is being removed, begin anew under `uid`.
-- Returns nothing when another transaction is making or removing the same: try again.
WITH made AS (
    INSERT INTO builds AS b (
        id, uid, runtime, kind, source, traceparent, state, attempts,
        claimed_by, claim_token, claim_until, expire_time
    )
    VALUES (
        :id, :uid, :runtime, :kind, :source, :traceparent, :state::smallint, 1,
        CASE WHEN :state::smallint = 2 THEN :replica::text END,
        CASE WHEN :state::smallint = 2 THEN :token::text END,
        CASE WHEN :state::smallint = 2 THEN now() + :claim::interval END,
        greatest(:until::timestamptz, now() + :patience::interval) + :retention::interval
    )
    ON CONFLICT (id) DO UPDATE SET
        uid = excluded.uid, source = excluded.source, traceparent = excluded.traceparent,
        state = excluded.state, attempts = 1, outcome = '', environment = NULL, retry_time = NULL,
        claimed_by = excluded.claimed_by, claim_token = excluded.claim_token,
        claim_until = excluded.claim_until, watched = false, ended = false,
        create_time = now(), end_time = NULL,
        expire_time = greatest(excluded.expire_time, b.expire_time)
    WHERE b.ended OR (b.state = 4 AND b.retry_time <= now())
    RETURNING b.*
), known AS (
    UPDATE builds b
    SET expire_time = greatest(b.expire_time, :until::timestamptz + :retention::interval)
    WHERE b.id = :id AND NOT b.ended AND NOT EXISTS (SELECT FROM made)
    RETURNING b.*
), chosen AS (
    SELECT * FROM made UNION ALL SELECT * FROM known
), forgotten AS (
    DELETE FROM events WHERE build IN (SELECT id FROM made)
), held AS (
    INSERT INTO holds (build, function_uid, function, expire_time)
    SELECT id, :function_uid::text, :function::text, :until::timestamptz FROM chosen
    WHERE :function_uid::text <> '' AND :until::timestamptz IS NOT NULL
    ON CONFLICT (build, function_uid)
    DO UPDATE SET expire_time = greatest(holds.expire_time, excluded.expire_time)
)
-- Whoever claims it at once ends it in a moment with a statement that is flushed to disk, and this
-- one with it; one that is only queued is flushed now.
SELECT chosen.*, CASE WHEN claim_token = :token::text
    THEN set_config('synchronous_commit', 'off', true) END
FROM chosen;

-- name: rebuild(id, uid, source, traceparent, replica, token, claim)^
-- Begins a build again whose files are gone, for those who hold it as well.
UPDATE builds
SET state = 2, source = :source, traceparent = :traceparent, attempts = 1, outcome = '',
    environment = NULL, claimed_by = :replica, claim_token = :token,
    claim_until = now() + :claim::interval, end_time = NULL
WHERE id = :id AND uid = :uid AND state = 3 AND NOT ended
RETURNING *;

-- name: forget_events(id)!
DELETE FROM events WHERE build = :id;

-- name: claim_builds(replica, token, claim, running, count)
-- Claims builds that nobody does: queued ones, and those whose worker has gone silent.
UPDATE builds b
SET state = 2, claimed_by = :replica::text, claim_token = :token::text || '-' || b.id,
    claim_until = now() + :claim::interval, attempts = b.attempts + (b.state = 2)::integer
FROM (
    SELECT id
    FROM builds
    WHERE state IN (1, 2) AND NOT ended AND (claim_until IS NULL OR claim_until < now())
        AND NOT coalesce(claim_token, '') = ANY (:running::text[])
    ORDER BY create_time
    LIMIT :count::integer
    FOR UPDATE SKIP LOCKED
) free
WHERE b.id = free.id
RETURNING b.*;

-- name: free_own_claims(replica)!
-- At the start of a replica: what its predecessor of the same name was doing is free.
UPDATE builds SET claim_until = now() WHERE claimed_by = :replica AND state = 2;

-- name: keep_claims(tokens, claim)
-- Says that these are still being done; returns those that are still wanted of this worker.
UPDATE builds SET claim_until = now() + :claim::interval
WHERE claim_token = ANY (:tokens::text[]) AND NOT ended
RETURNING claim_token;

-- name: give_back(token)!
-- Queues a build again that this worker cannot finish.
UPDATE builds
SET state = 1, claimed_by = NULL, claim_token = NULL, claim_until = NULL
WHERE claim_token = :token;

-- name: add_events(id, token, first, items)$
-- Adds events of a build that this worker does; returns whether somebody elsewhere watches it.
WITH doing AS (
    SELECT id, watched FROM builds WHERE id = :id AND claim_token = :token AND NOT ended
), added AS (
    INSERT INTO events (build, first, items)
    SELECT id, :first::bigint, :items::bytea[] FROM doing
    ON CONFLICT (build, first) DO NOTHING
)
SELECT watched FROM doing;

-- name: last_sequence(id)$
SELECT coalesce(max(first + cardinality(items) - 1), 0) FROM events WHERE build = :id;

-- name: finish_build(id, token, state, outcome, retry, retention, first, items, bundle, lock)^
-- Ends a build, with its last events, and its bundle where it has one. Returns nothing when the claim was lost.
WITH done AS (
    UPDATE builds b
    SET state = :state, outcome = :outcome, source = NULL, end_time = now(),
        retry_time = now() + :retry::interval,
        claimed_by = NULL, claim_token = NULL, claim_until = NULL,
        expire_time = :retention::interval + greatest(
            now(), (SELECT max(h.expire_time) FROM holds h WHERE h.build = b.id)
        )
    WHERE b.id = :id AND b.claim_token = :token AND NOT b.ended
    RETURNING b.*
), added AS (
    INSERT INTO events (build, first, items)
    SELECT id, :first::bigint, :items::bytea[] FROM done WHERE cardinality(:items::bytea[]) > 0
    ON CONFLICT (build, first) DO NOTHING
), bundled AS (
    INSERT INTO bundles (build, bundle, lock)
    SELECT id, :bundle::bytea, :lock::text FROM done WHERE length(:bundle::bytea) > 0
    ON CONFLICT (build) DO UPDATE SET bundle = excluded.bundle, lock = excluded.lock
)
SELECT * FROM done;

-- name: get_bundle(id)^
SELECT bundle, lock FROM bundles WHERE build = :id;

-- name: get_build(id)^
SELECT * FROM builds WHERE id = :id AND NOT ended;

-- name: ended_builds(ids)
-- Those of these builds that are not under way.
SELECT id, uid, outcome FROM builds
WHERE id = ANY (:ids::text[]) AND state IN (3, 4) AND NOT ended;

-- name: watch_build(id, after, here)^
-- One build with its events after a sequence number. `here`: it is done in this process, which
-- tells of changes itself; else whoever does it is asked to notify (`told`: it will).
WITH marked AS (
    UPDATE builds SET watched = true
    WHERE id = :id AND NOT :here::boolean AND NOT watched AND state IN (1, 2)
    RETURNING id
)
SELECT b.*, (
    SELECT array_agg(e.item ORDER BY e.first, e.number)
    FROM (
        SELECT first, unnest(items) AS item, generate_subscripts(items, 1) AS number
        FROM events
        WHERE build = :id AND first + cardinality(items) > :after::bigint
    ) e
    WHERE e.first + e.number - 1 > :after::bigint
) AS items, (b.watched OR EXISTS (SELECT FROM marked)) AS told
FROM builds b
WHERE b.id = :id AND NOT b.ended;

-- name: list_builds(before_time, before_id, count)
-- One page, newest first, after the given position.
SELECT *
FROM builds
WHERE NOT ended AND (create_time, id) < (:before_time::timestamptz, :before_id::text)
ORDER BY create_time DESC, id DESC
LIMIT :count::integer;

-- name: hold_build(id, function_uid, until, retention)$
-- Holds a build for a function until then; returns whether there is such a build.
WITH known AS (
    UPDATE builds
    SET expire_time = greatest(expire_time, :until::timestamptz + :retention::interval)
    WHERE id = :id AND NOT ended
    RETURNING id
), held AS (
    INSERT INTO holds (build, function_uid, function, expire_time)
    SELECT id, :function_uid::text, '', :until::timestamptz FROM known
    ON CONFLICT (build, function_uid) DO UPDATE SET expire_time = excluded.expire_time
)
SELECT true FROM known;

-- name: lock_held(function_uids, builds)
-- Locks what these functions hold, in one order for every replica: the statement after this one
-- sees every hold that was taken before. An empty build means all of the function's.
SELECT b.id
FROM builds b
WHERE b.id IN (
    SELECT h.build
    FROM holds h
    JOIN unnest(:function_uids::text[], :builds::text[]) AS w (function_uid, build)
        ON w.function_uid = h.function_uid AND w.build IN ('', h.build)
)
ORDER BY b.id
FOR UPDATE;

-- name: release_holds(function_uids, builds, retention)
-- Takes these holds away. A build that nobody holds any more comes to its end (`ended`), and its
-- environment stays for its retention from now on, where no other build has it.
WITH gone AS (
    DELETE FROM holds h
    USING unnest(:function_uids::text[], :builds::text[]) AS w (function_uid, build)
    WHERE w.function_uid = h.function_uid AND w.build IN ('', h.build)
    RETURNING h.build, h.function_uid
), free AS (
    UPDATE builds b
    SET ended = true, claim_token = NULL
    WHERE b.id IN (SELECT build FROM gone) AND NOT b.ended AND NOT EXISTS (
        SELECT FROM holds h
        WHERE h.build = b.id AND h.expire_time > now()
            AND (h.build, h.function_uid) NOT IN (SELECT build, function_uid FROM gone)
    )
    RETURNING b.id, b.uid, b.environment, b.outcome
), kept AS (
    UPDATE environments SET expire_time = now() + :retention::interval
    WHERE digest IN (SELECT environment FROM free) AND NOT ended
)
SELECT g.function_uid, g.build, f.uid, b.uid AS build_uid, b.environment, f.outcome
FROM gone g
JOIN builds b ON b.id = g.build
LEFT JOIN free f ON f.id = g.build;

-- name: forget_builds(ids, uids)!
-- Deletes the rows of builds whose files are gone.
DELETE FROM builds b
USING unnest(:ids::text[], :uids::text[]) AS w (id, uid)
WHERE b.id = w.id AND b.uid = w.uid AND b.ended;

-- name: use_resolution(build, token, key, age)^
-- Returns what requirements were resolved to not long ago, and gives the build the environment
-- made of it where there is one. `users` counts the other functions' builds that have it.
WITH fresh AS (
    SELECT environment, requirements
    FROM resolutions
    WHERE key = :key AND resolve_time > now() - :age::interval
), mine AS (
    SELECT id, expire_time FROM builds WHERE id = :build AND claim_token = :token
), given AS (
    UPDATE environments e
    SET expire_time = greatest(e.expire_time, m.expire_time)
    FROM fresh f, mine m
    WHERE e.digest = f.environment AND NOT e.ended
    RETURNING e.digest, e.uid
), noted AS (
    UPDATE builds SET environment = g.digest FROM given g WHERE id = :build AND claim_token = :token
)
SELECT f.environment, f.requirements, g.uid, (
    SELECT count(*) FROM builds b WHERE b.environment = g.digest AND b.id <> :build AND NOT b.ended
) AS users
FROM fresh f
LEFT JOIN given g ON g.digest = f.environment;

-- name: use_environment(build, token, key, digest, uid, interpreter, requirements)^
-- Gives the build an environment, making its row where there is none or where it is being
-- removed, and keeps the resolution that led to it. Returns nothing when the claim was lost.
WITH mine AS (
    UPDATE builds SET environment = :digest::text WHERE id = :build AND claim_token = :token
    RETURNING id, expire_time
), kept AS (
    INSERT INTO resolutions (key, environment, requirements)
    SELECT :key::text, :digest::text, :requirements::text[] FROM mine
    ON CONFLICT (key) DO UPDATE SET
        environment = excluded.environment, requirements = excluded.requirements,
        resolve_time = now()
)
INSERT INTO environments AS e (digest, uid, interpreter, requirements, expire_time)
SELECT :digest::text, :uid::text, :interpreter::text, :requirements::text[], m.expire_time
FROM mine m
ON CONFLICT (digest) DO UPDATE SET
    uid = CASE WHEN e.ended THEN excluded.uid ELSE e.uid END,
    ended = false,
    expire_time = greatest(e.expire_time, excluded.expire_time)
RETURNING e.uid, (
    SELECT count(*) FROM builds b WHERE b.environment = :digest::text AND b.id <> :build AND NOT b.ended
) AS users;

-- name: save_resolution(key)!
-- Keeps that requirements come to nothing here.
INSERT INTO resolutions (key, environment, requirements) VALUES (:key, NULL, '{}')
ON CONFLICT (key) DO UPDATE SET
    environment = NULL, requirements = '{}', resolve_time = now();

-- name: keep_resolution(key, requirements)!
-- Keeps what requirements come to where no environment is made of them.
INSERT INTO resolutions (key, environment, requirements)
VALUES (:key, NULL, :requirements::text[])
ON CONFLICT (key) DO UPDATE SET
    environment = NULL, requirements = excluded.requirements, resolve_time = now();

-- name: drop_old_resolutions(age)!
DELETE FROM resolutions WHERE resolve_time < now() - :age::interval;

-- name: deadlines(horizon)
-- What ends within the horizon or has been ended: builds that nobody released, and environments
-- that no build has.
SELECT 'builds/' || id AS name, uid, expire_time, ended, traceparent
FROM builds
WHERE (expire_time <= now() + :horizon::interval AND state IN (3, 4)) OR ended
UNION ALL
SELECT 'environments/' || digest, uid, expire_time, ended, ''
FROM environments e
WHERE ended OR (expire_time <= now() + :horizon::interval AND NOT EXISTS (
    SELECT FROM builds b WHERE b.environment = e.digest AND NOT b.ended
));

-- name: end_builds(ids, uids, retention)
-- Ends those that are due by the database's clock; returns all that there are of them.
WITH due AS (
    UPDATE builds b
    SET ended = true, claim_token = NULL
    FROM unnest(:ids::text[], :uids::text[]) AS w (id, uid)
    WHERE b.id = w.id AND b.uid = w.uid AND (b.ended OR (
        b.expire_time <= now() AND (b.state IN (3, 4) OR b.claim_until < now())
    ))
    RETURNING b.id, b.environment
), kept AS (
    UPDATE environments SET expire_time = now() + :retention::interval
    WHERE digest IN (SELECT environment FROM due) AND NOT ended
)
SELECT
    b.id, b.uid, b.create_time, b.expire_time, b.traceparent, b.environment, b.outcome,
    d.id IS NOT NULL AS due
FROM builds b
JOIN unnest(:ids::text[], :uids::text[]) AS w (id, uid) ON b.id = w.id AND b.uid = w.uid
LEFT JOIN due d ON d.id = b.id;

-- name: end_environments(digests, uids)
-- Ends those that are due and that no build has; returns all that there are of them.
WITH due AS (
    UPDATE environments e
    SET ended = true
    FROM unnest(:digests::text[], :uids::text[]) AS w (digest, uid)
    WHERE e.digest = w.digest AND e.uid = w.uid AND (e.ended OR (
        e.expire_time <= now()
        AND NOT EXISTS (SELECT FROM builds b WHERE b.environment = e.digest AND NOT b.ended)
    ))
    RETURNING e.digest
)
SELECT e.digest, e.uid, e.create_time, e.expire_time, d.digest IS NOT NULL AS due
FROM environments e
JOIN unnest(:digests::text[], :uids::text[]) AS w (digest, uid)
    ON e.digest = w.digest AND e.uid = w.uid
LEFT JOIN due d ON d.digest = e.digest;

-- name: forget_environments(digests, uids)!
DELETE FROM environments e
USING unnest(:digests::text[], :uids::text[]) AS w (digest, uid)
WHERE e.digest = w.digest AND e.uid = w.uid AND e.ended;

-- name: known_builds()
-- What may be on disk for builds: uid and, while it is being done, the claim.
SELECT id, uid, claim_token FROM builds WHERE NOT ended;

-- name: known_environments()
SELECT digest, uid FROM environments WHERE NOT ended;

-- name: holds_of(function_uids)
SELECT build, function_uid, function FROM holds WHERE function_uid = ANY (:function_uids::text[]);

-- name: counts()^
SELECT
    (SELECT count(*) FROM builds WHERE state = 1) AS queued,
    (SELECT count(*) FROM builds WHERE state = 2) AS running,
    (SELECT count(*) FROM environments) AS environments;

-- name: ping()$
SELECT 1;
