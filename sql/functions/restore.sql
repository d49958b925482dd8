-- After a restore to an earlier time: what was given out in the time that is lost must not pass for
-- what is given out now. That is revisions (and so entity tags), dates, generations of caches,
-- cursors of changes, and decisions about tokens.

CREATE OR REPLACE FUNCTION poky.after_restore(
    p_future_seconds integer, OUT revision bigint, OUT lease_seconds double precision
)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
DECLARE
    v_now timestamptz := clock_timestamp();
    v_sequence pg_catalog.pg_sequence;
    v_revision bigint;
BEGIN
    -- The clock in microseconds is ahead of every revision drawn before, however often the database
    -- was restored: a fixed step would be repeated by a second restore to the same time. It holds up
    -- to a million changes a second. Where databases share the numbers, each keeps to its own.
    SELECT s.* INTO v_sequence FROM pg_catalog.pg_sequence AS s
    WHERE s.seqrelid = 'poky.revision'::regclass;
    SELECT greatest(
        s.last_value,
        v_sequence.seqstart + v_sequence.seqincrement
        * ceil(extract(epoch FROM v_now) * 1000000 / v_sequence.seqincrement)::bigint
    ) INTO v_revision FROM poky.revision AS s;
    revision := setval('poky.revision', v_revision);
    -- A client's copy may be dated later than the object that is there again, up to as far ahead as
    -- dates may be: until then If-Modified-Since alone is no reason for 304. And every cursor begins
    -- anew: numbers of transactions are given out again.
    UPDATE poky.bucket SET
        unsettled_until = greatest(
            unsettled_until, ceil(extract(epoch FROM v_now))::bigint + p_future_seconds
        ),
        changes_since = CASE WHEN changes_kept IS NOT NULL THEN poky._settled_snapshot() END,
        former = NULL;
    DELETE FROM poky._stay;
    INSERT INTO poky.migration (name, checksum, release, applied_at)
    VALUES ('restored', '', '', v_now)
    ON CONFLICT (name) DO UPDATE SET applied_at = v_now;
    -- Suspended ones, too: a node keeps its generation when it is reinstated.
    UPDATE poky.cache_node SET generation = gen_random_uuid();
    -- Shards go by control's.
    UPDATE poky.policy AS p SET tag = gen_random_uuid(), revision = nextval('poky.revision')
    WHERE EXISTS (SELECT FROM poky.shard AS s WHERE s.number = 0);
    SELECT coalesce(max(n.lease_seconds), 0) INTO lease_seconds FROM poky.cache_node AS n;
END;
$$;
COMMENT ON FUNCTION poky.after_restore IS
'To be called once after a restore to an earlier time, before any instance runs: revisions go on where none was drawn, caches forget everything, cursors of changes end. p_future_seconds: how far ahead clients'' dates may be. lease_seconds: for so long a cache may still use its copies.';
