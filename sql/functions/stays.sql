-- A bucket's stays in databases (docs/shards.md): it begins another one with each arrival. Its log is
-- not moved; who follows it reads the end of a former stay where that was, and goes on at the next.

CREATE OR REPLACE FUNCTION poky._oldest_stay(p_bucket poky.bucket) RETURNS integer
LANGUAGE sql STABLE
AS $$
    SELECT coalesce(min((f ->> 'stay')::integer), p_bucket.stay)
    FROM jsonb_array_elements(p_bucket.former) AS f
    WHERE (f ->> 'ended_at')::double precision + (f ->> 'kept')::integer
        > date_part('epoch', clock_timestamp())
$$;
COMMENT ON FUNCTION poky._oldest_stay IS 'The first of a bucket''s stays whose changes are kept.';

CREATE OR REPLACE FUNCTION poky._refuse_former(p_bucket poky.bucket, p_stay integer) RETURNS void
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    v_former jsonb;
BEGIN
    SELECT f INTO v_former FROM jsonb_array_elements(p_bucket.former) AS f
    WHERE (f ->> 'stay')::integer = p_stay;
    PERFORM poky._refuse_gone(clock_timestamp(), 0, v_former IS NULL);
    RAISE EXCEPTION USING
        ERRCODE = 'PK503',
        HINT = 'changes_elsewhere',
        DETAIL = v_former || jsonb_build_object('id', p_bucket.id),
        MESSAGE = format('The changes after this cursor are on shard %s.', v_former ->> 'shard');
END;
$$;
COMMENT ON FUNCTION poky._refuse_former IS
'PK503: the changes of a former stay are in another database; PK410: there was none.';

CREATE OR REPLACE FUNCTION poky._end_stay(p_bucket poky.bucket) RETURNS void
LANGUAGE sql
AS $$
    INSERT INTO poky._stay (id, stay, since, until, changes_kept)
    SELECT
        p_bucket.id, p_bucket.stay, p_bucket.changes_since, poky._settled_snapshot(),
        p_bucket.changes_kept
    WHERE p_bucket.changes_kept IS NOT NULL
$$;
COMMENT ON FUNCTION poky._end_stay IS
'On the source, when all writes of the bucket have ended: where its log here ends.';

CREATE OR REPLACE FUNCTION poky._begin_stay(p_bucket poky.bucket, p_source integer)
RETURNS poky.bucket
LANGUAGE plpgsql
AS $$
DECLARE
    v_bucket poky.bucket := p_bucket;
    v_now timestamptz := clock_timestamp();
BEGIN
    v_bucket.created_at := v_now;  -- here: earlier cursors without a stay are of another bucket
    v_bucket.stay := coalesce(p_bucket.stay, 0) + 1;
    v_bucket.former := NULL;
    IF p_bucket.changes_kept IS NOT NULL THEN
        v_bucket.changes_since := poky._settled_snapshot();
        SELECT jsonb_agg(f) INTO v_bucket.former FROM (
            SELECT e FROM jsonb_array_elements(p_bucket.former) AS e
            WHERE (e ->> 'ended_at')::double precision + (e ->> 'kept')::integer + 7200
                > date_part('epoch', v_now)
            UNION ALL
            SELECT jsonb_build_object(
                'stay', v_bucket.stay - 1, 'shard', p_source, 'kept', p_bucket.changes_kept,
                'ended_at', date_part('epoch', v_now), 'next',
                v_bucket.stay || 's' || poky._cursor(v_bucket.changes_since, v_now)
            )
        ) AS all_of_them (f);
    END IF;
    RETURN v_bucket;
END;
$$;
COMMENT ON FUNCTION poky._begin_stay IS
'On the target: the bucket as it is from its arrival on, with the stays before.';

CREATE OR REPLACE FUNCTION poky.former_changes(
    p_id integer, p_stay integer, p_next text, p_after text, p_prefix text, p_limit integer,
    OUT key text, OUT result text, OUT revision bigint, OUT hash text, OUT modified_at bigint,
    OUT xid bigint, OUT next text, OUT policy text
)
RETURNS SETOF record
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
DECLARE
    v_stay poky._stay;
    v_after record;
BEGIN
    SELECT * INTO v_stay FROM poky._stay AS y WHERE y.id = p_id AND y.stay = p_stay;
    IF p_after = '0' THEN
        SELECT
            v_stay.since AS seen, NULL::pg_snapshot AS until, clock_timestamp() AS seen_at,
            clock_timestamp() AS until_at, 0::bigint AS last
        INTO v_after;
    ELSE
        v_after := poky._read_cursor(p_after);
    END IF;
    PERFORM poky._refuse_gone(
        v_after.seen_at, v_stay.changes_kept,
        v_stay.id IS NULL OR NOT poky._includes(v_after.seen, v_stay.since)
    );
    RETURN QUERY SELECT c.* FROM poky._read_changes(
        p_id, p_stay, v_after, v_stay.until, p_next, p_prefix, p_limit
    ) AS c;
END;
$$;
COMMENT ON FUNCTION poky.former_changes IS
'As poky.changes, of a stay of a bucket that has ended here: to its end, and then p_next, the cursor with which the next stay begins. PK410, PK400.';
