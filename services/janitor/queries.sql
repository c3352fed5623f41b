-- name: intend(resources, uids, names, owners, deadlines, traceparents)
-- Says that these are about to be reclaimed; returns what was known of each before:
-- 'new', 'pending' (begun, no receipt yet) or 'done' (a receipt exists).
WITH wanted AS (
    SELECT *
    FROM unnest(
        :resources::text[], :uids::text[], :names::text[], :owners::text[],
        :deadlines::timestamptz[], :traceparents::text[]
    ) AS w (resource, uid, name, owner, deadline, traceparent)
), added AS (
    INSERT INTO receipts (resource, uid, name, owner, deadline, traceparent)
    SELECT resource, uid, name, owner, deadline, traceparent
    FROM wanted
    ORDER BY resource, uid
    ON CONFLICT (resource, uid) DO NOTHING
    RETURNING resource, uid
)
SELECT w.resource, w.uid,
    CASE
        WHEN a.uid IS NOT NULL THEN 'new'
        WHEN r.payload IS NOT NULL THEN 'done'
        ELSE 'pending'
    END AS known
FROM wanted w
LEFT JOIN added a USING (resource, uid)
LEFT JOIN receipts r USING (resource, uid);

-- name: discard(resources, uids)!
-- Takes intentions back: these were renewed, or there is no such thing.
DELETE FROM receipts r
USING unnest(:resources::text[], :uids::text[]) AS w (resource, uid)
WHERE r.resource = w.resource AND r.uid = w.uid AND r.payload IS NULL;

-- name: lock_receipts(resources, uids)
-- Locks the rows of these, in one order for every replica, and returns their receipts.
SELECT r.resource, r.uid, r.payload
FROM receipts r
JOIN unnest(:resources::text[], :uids::text[]) AS w (resource, uid) USING (resource, uid)
ORDER BY r.resource, r.uid
FOR UPDATE OF r;

-- name: save(resources, uids, names, owners, deadlines, traceparents, reclaim_times, verified, payloads)!
-- Writes receipts, over intentions or older receipts of the same uid.
INSERT INTO receipts
    (resource, uid, name, owner, deadline, traceparent, reclaim_time, verified, payload)
SELECT *
FROM unnest(
    :resources::text[], :uids::text[], :names::text[], :owners::text[], :deadlines::timestamptz[],
    :traceparents::text[], :reclaim_times::timestamptz[], :verified::boolean[], :payloads::bytea[]
) AS w (resource, uid, name, owner, deadline, traceparent, reclaim_time, verified, payload)
ORDER BY resource, uid
ON CONFLICT (resource, uid) DO UPDATE SET
    reclaim_time = excluded.reclaim_time,
    verified = excluded.verified,
    payload = excluded.payload;

-- name: latest_receipt(name)^
-- The latest row of this receipt's name; `payload` is null while its reclamation is under way.
SELECT payload
FROM receipts
WHERE name = :name
ORDER BY (payload IS NULL), reclaim_time DESC
LIMIT 1;

-- name: list_receipts(before_time, before_uid, count)
-- One page, newest first, after the given position.
SELECT payload, reclaim_time, uid
FROM receipts
WHERE payload IS NOT NULL
    AND (reclaim_time, uid) < (:before_time::timestamptz, :before_uid::text)
ORDER BY reclaim_time DESC, uid DESC
LIMIT :count::integer;

-- name: unfinished()
-- What a janitor that stopped had begun: without a receipt, or with one that is not verified.
SELECT resource, uid, owner, deadline, traceparent, payload
FROM receipts
WHERE NOT verified
ORDER BY intent_time;

-- name: drop_old(seconds)!
-- Forgets sweeps and verified receipts that have been kept for long enough.
WITH receipts_gone AS (
    DELETE FROM receipts
    WHERE verified AND reclaim_time < now() - make_interval(secs => :seconds::float)
)
DELETE FROM sweeps WHERE end_time < now() - make_interval(secs => :seconds::float);

-- name: add_sweep(start_time, end_time, dry_run, found, removed, unreachable)!
INSERT INTO sweeps (start_time, end_time, dry_run, found, removed, unreachable)
VALUES (:start_time, :end_time, :dry_run, :found, :removed, :unreachable::text[]);

-- name: last_sweep_time()$
SELECT max(end_time) FROM sweeps;

-- name: ping()$
SELECT 1;
