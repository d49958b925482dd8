-- Cursors of changes (decision 0012).
--
-- A cursor is a snapshot: what its reader has seen is what was committed then. What is new to it is
-- what a later snapshot has committed besides, in the order of revisions, which are drawn while the
-- key is locked. Neither the order of revisions nor that of transactions alone is one in which
-- changes appear: a later number may be committed first. As text: seconds since 1970, xmin, xmax and
-- the distances of the transactions in progress from xmin; in the midst of a page also the snapshot
-- in which the page ends and the last revision before: 17.700.709.1-4_18.712.712._99.
-- Numbers of transactions are of one database: where the bucket came from another one, the cursor
-- begins with how often it did: 2s17.700.709.1-4.
-- The helpers are not in SQL: what PostgreSQL cannot inline, it would plan at each call.

CREATE OR REPLACE FUNCTION poky._settled_snapshot() RETURNS pg_snapshot
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    v_snapshot pg_snapshot := pg_current_snapshot();
    v_xmin bigint := pg_snapshot_xmin(v_snapshot)::text::bigint;
    v_xmax bigint := pg_snapshot_xmax(v_snapshot)::text::bigint;
BEGIN
    -- A number that was given up, and not used since, may be given out again after a crash.
    FOR v_try IN 1 .. 1000 LOOP
        EXIT WHEN v_xmax <= 3
            OR coalesce(pg_xact_status((v_xmax - 1)::text::xid8), 'committed') = 'committed';
        v_xmax := v_xmax - 1;
    END LOOP;
    RETURN least(v_xmin, v_xmax) || ':' || v_xmax || ':' || coalesce((
        SELECT string_agg(x::text, ',' ORDER BY x) FROM pg_snapshot_xip(v_snapshot) AS x
        WHERE x::text::bigint < v_xmax
    ), '');
END;
$$;
COMMENT ON FUNCTION poky._settled_snapshot IS
'What is committed now, and stays so: without numbers of transactions that a crash could bring back.';

CREATE OR REPLACE FUNCTION poky._cursor(p_snapshot pg_snapshot, p_at timestamptz) RETURNS text
LANGUAGE plpgsql IMMUTABLE
AS $$
BEGIN
    RETURN concat_ws(
        '.', floor(date_part('epoch', p_at)), pg_snapshot_xmin(p_snapshot),
        pg_snapshot_xmax(p_snapshot), coalesce((
            SELECT string_agg(
                (x::text::bigint - pg_snapshot_xmin(p_snapshot)::text::bigint)::text, '-'
                ORDER BY x
            )
            FROM pg_snapshot_xip(p_snapshot) AS x
        ), '')
    );
END;
$$;
COMMENT ON FUNCTION poky._cursor IS 'A snapshot as part of a cursor.';

CREATE OR REPLACE FUNCTION poky._snapshot(p_cursor text) RETURNS pg_snapshot
LANGUAGE plpgsql IMMUTABLE
AS $$
BEGIN
    RETURN (split_part(p_cursor, '.', 2) || ':' || split_part(p_cursor, '.', 3) || ':' || coalesce((
        SELECT string_agg((split_part(p_cursor, '.', 2)::bigint + d::bigint)::text, ',')
        FROM unnest(string_to_array(nullif(split_part(p_cursor, '.', 4), ''), '-')) AS d
    ), ''))::pg_snapshot;
END;
$$;
COMMENT ON FUNCTION poky._snapshot IS 'The snapshot that is part of a cursor.';

CREATE OR REPLACE FUNCTION poky._includes(p_later pg_snapshot, p_earlier pg_snapshot) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE
AS $$
BEGIN
    RETURN pg_snapshot_xmax(p_later) >= pg_snapshot_xmax(p_earlier) AND NOT EXISTS (
        SELECT FROM pg_snapshot_xip(p_later) AS x WHERE pg_visible_in_snapshot(x, p_earlier)
    );
END;
$$;
COMMENT ON FUNCTION poky._includes IS 'Whether all that one snapshot has committed is in another, too.';

CREATE OR REPLACE FUNCTION poky.cursor() RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
    SELECT poky._cursor(poky._settled_snapshot(), clock_timestamp())
$$;
COMMENT ON FUNCTION poky.cursor IS
'The cursor of this transaction''s snapshot. Of one that is REPEATABLE READ: poky.changes gives, after it, just what is committed besides what this transaction reads.';

CREATE OR REPLACE FUNCTION poky._read_cursor(
    p_cursor text, OUT seen pg_snapshot, OUT until pg_snapshot, OUT seen_at timestamptz,
    OUT until_at timestamptz, OUT last bigint
)
LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
    v_parts text [] := string_to_array(regexp_replace(p_cursor, '^\d+s', ''), '_');
BEGIN
    IF p_cursor !~ '^(\d{1,9}s)?\d+\.\d+\.\d+\.[\d-]*(_\d+\.\d+\.\d+\.[\d-]*_\d+)?$' THEN
        RAISE data_exception;
    END IF;
    seen := poky._snapshot(v_parts[1]);
    seen_at := to_timestamp(split_part(v_parts[1], '.', 1)::bigint);
    until := poky._snapshot(v_parts[2]);
    until_at := to_timestamp(split_part(v_parts[2], '.', 1)::bigint);
    last := coalesce(v_parts[3]::bigint, 0);
EXCEPTION WHEN data_exception THEN
    RAISE EXCEPTION USING
        ERRCODE = 'PK400',
        HINT = 'bad_cursor',
        MESSAGE = 'This is no cursor: use what next said, 0, or nothing.';
END;
$$;
COMMENT ON FUNCTION poky._read_cursor IS 'The parts of a cursor. PK400.';

CREATE OR REPLACE FUNCTION poky._stay_of(p_cursor text) RETURNS integer
LANGUAGE plpgsql IMMUTABLE
AS $$
BEGIN
    RETURN coalesce(substring(p_cursor FROM '^(\d{1,9})s')::integer, 0);
END;
$$;
COMMENT ON FUNCTION poky._stay_of IS 'Of which stay of its bucket a cursor is.';

CREATE OR REPLACE FUNCTION poky._refuse_gone(p_seen_at timestamptz, p_kept integer, p_gone boolean)
RETURNS void
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    IF p_gone OR p_seen_at < clock_timestamp() - (p_kept + 3600) * interval '1 second'
        -- Numbers of transactions from before a restore are given out again (poky.after_restore).
        OR p_seen_at < (
            SELECT date_trunc('second', m.applied_at) FROM poky.migration AS m
            WHERE m.name = 'restored'
        )
    THEN
        RAISE EXCEPTION USING
            ERRCODE = 'PK410',
            HINT = 'changes_gone',
            MESSAGE = 'Changes after this cursor are not kept any more.';
    END IF;
END;
$$;
COMMENT ON FUNCTION poky._refuse_gone IS 'PK410: the cursor is too old, or of another time.';
