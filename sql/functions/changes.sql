-- The changes of buckets: recorded by triggers, read by cursor.

-- How changes are recorded.

CREATE OR REPLACE FUNCTION poky._record_change() RETURNS trigger
LANGUAGE plpgsql
AS $$
DECLARE
    v_revision bigint;
BEGIN
    IF TG_OP = 'DELETE' THEN
        v_revision := nextval('poky.revision');
        INSERT INTO poky._change (xid, revision, bucket_id, key, result, step) VALUES (
            pg_current_xact_id(), v_revision, old.bucket_id, old.key,
            CASE WHEN old.expires_at <= clock_timestamp() THEN 'expire' ELSE 'delete' END,
            CASE WHEN v_revision % 1000 = 0 THEN pg_current_snapshot() END
        );
    ELSE
        INSERT INTO poky._change (
            xid, revision, modified_at, bucket_id, key, result, hash, step
        ) VALUES (
            pg_current_xact_id(), new.revision, new.modified_at, new.bucket_id, new.key, 'put',
            new.hash, CASE WHEN new.revision % 1000 = 0 THEN pg_current_snapshot() END
        );
    END IF;
    RETURN NULL;
END;
$$;
COMMENT ON FUNCTION poky._record_change IS 'Trigger: record a change of an object.';

CREATE OR REPLACE FUNCTION poky._record_redrawn() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    UPDATE poky._change SET revision = new.revision, modified_at = new.modified_at
    WHERE bucket_id = new.bucket_id AND xid = pg_current_xact_id() AND revision = old.revision;
    RETURN NULL;
END;
$$;
COMMENT ON FUNCTION poky._record_redrawn IS
'Trigger: a put, recorded already, was given another revision (poky._draw_anew, poky._revive).';

CREATE OR REPLACE FUNCTION poky._renew_recording(p_table text) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    v_ids text;
    v_trigger record;
BEGIN
    SELECT string_agg(b.id::text, ',' ORDER BY b.id) INTO v_ids FROM poky.bucket AS b
    WHERE b.changes_kept IS NOT NULL AND coalesce(b.leaf, '_object') = p_table;
    FOR v_trigger IN
        SELECT * FROM (VALUES
            ('record_put', 'INSERT OR UPDATE OF hash', '_record_change', 'new'),
            ('record_delete', 'DELETE', '_record_change', 'old'),
            ('record_redrawn', 'UPDATE OF created_at', '_record_redrawn', 'new')
        ) AS t (name, event, function, row)
    LOOP
        IF EXISTS (
            SELECT FROM pg_catalog.pg_trigger AS t
            WHERE t.tgrelid = format('poky.%I', p_table)::regclass AND t.tgname = v_trigger.name
        ) THEN
            EXECUTE format('DROP TRIGGER %I ON poky.%I', v_trigger.name, p_table);
        END IF;
        IF v_ids IS NOT NULL THEN
            EXECUTE format(
                'CREATE TRIGGER %I AFTER %s ON poky.%I FOR EACH ROW'
                ' WHEN (%s.bucket_id IN (%s)) EXECUTE FUNCTION poky.%I()',
                v_trigger.name, v_trigger.event, p_table, v_trigger.row, v_ids, v_trigger.function
            );
        END IF;
    END LOOP;
END;
$$;
COMMENT ON FUNCTION poky._renew_recording IS
'Give a table of objects the triggers for those of its buckets that record changes, or none.';

CREATE OR REPLACE FUNCTION poky.keep_changes(p_bucket text, p_seconds integer) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
DECLARE
    v_bucket poky.bucket;
    v_table text;
BEGIN
    IF p_seconds NOT BETWEEN 1 AND 31622400 THEN
        RAISE EXCEPTION USING
            ERRCODE = 'PK400',
            HINT = 'bad_retention',
            MESSAGE = 'Changes are kept for 1 second to 366 days.';
    END IF;
    SELECT * INTO v_bucket FROM poky.bucket WHERE name = p_bucket;
    IF NOT FOUND THEN
        PERFORM poky._refuse_bucket(p_bucket);
    ELSIF v_bucket.changes_kept IS NOT DISTINCT FROM p_seconds THEN
        RETURN false;
    END IF;
    IF v_bucket.changes_kept IS NULL OR p_seconds IS NULL THEN
        -- Before the bucket's row, as poky.drop_bucket. All who wrote without the triggers are gone
        -- then, and a snapshot that is taken now tells what was recorded from what was not.
        v_table := coalesce(v_bucket.leaf, '_object');
        PERFORM poky._lock_patiently(
            format('LOCK TABLE poky.%I IN ACCESS EXCLUSIVE MODE', v_table), 20
        );
        UPDATE poky.bucket SET
            changes_kept = p_seconds,
            former = NULL,
            changes_since = CASE WHEN p_seconds IS NOT NULL THEN poky._settled_snapshot() END
        WHERE id = v_bucket.id AND coalesce(leaf, '_object') = v_table;
        IF NOT FOUND THEN
            PERFORM poky._refuse_bucket(p_bucket);
        END IF;
        PERFORM poky._renew_recording(v_table);
    ELSE
        UPDATE poky.bucket SET changes_kept = p_seconds WHERE id = v_bucket.id;
    END IF;
    PERFORM poky.renew_changes();
    RETURN true;
END;
$$;
COMMENT ON FUNCTION poky.keep_changes IS
'Record the changes of a bucket from now on, and keep them for so many seconds; null: do not. Whether that is new. PK404, PK400.';

CREATE OR REPLACE FUNCTION poky.renew_changes() RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = poky, pg_temp
SET timezone = 'UTC'
SET lock_timeout = '200ms'
AS $$
DECLARE
    v_kept interval;
    v_day date;
    v_name text;
    v_dropped integer := 0;
BEGIN
    DELETE FROM poky._stay AS y
    WHERE y.ended_at + (y.changes_kept + 86400) * interval '1 second' < now();
    SELECT max(k.seconds) * interval '1 second' INTO v_kept FROM (
        SELECT b.changes_kept FROM poky.bucket AS b
        UNION ALL
        SELECT y.changes_kept FROM poky._stay AS y
    ) AS k (seconds);
    FOR v_day IN SELECT current_date + n FROM generate_series(0, 2) AS n LOOP
        v_name := to_char(v_day, '"_change_"YYYYMMDD');
        IF v_kept IS NOT NULL AND to_regclass('poky.' || v_name) IS NULL AND NOT EXISTS (
            SELECT FROM poky._change_rest AS r
            WHERE r.recorded_at >= v_day AND r.recorded_at < v_day + 1
        ) THEN
            EXECUTE format('CREATE TABLE poky.%I (LIKE poky._change INCLUDING ALL)', v_name);
            EXECUTE format('COMMENT ON TABLE poky.%I IS %L', v_name, 'Changes of one day.');
            EXECUTE format(
                'ALTER TABLE poky._change ATTACH PARTITION poky.%I FOR VALUES FROM (%L) TO (%L)',
                v_name, v_day::timestamptz, (v_day + 1)::timestamptz
            );
        END IF;
    END LOOP;
    -- A day more than the longest: a transaction may be committed long after its rows were written.
    FOR v_name IN
        SELECT c.relname FROM pg_catalog.pg_class AS c
        WHERE c.relnamespace = 'poky'::regnamespace AND c.relname ~ '^_change_[0-9]{8}$'
            AND to_date(right(c.relname, 8), 'YYYYMMDD') + 1 + coalesce(v_kept, interval '0')
            + interval '1 day' < now()
        ORDER BY 1
    LOOP
        EXECUTE format('DROP TABLE poky.%I', v_name);
        v_dropped := v_dropped + 1;
    END LOOP;
    DELETE FROM poky._change_rest
    WHERE recorded_at + coalesce(v_kept, interval '0') + interval '1 day' < now();
    RETURN v_dropped;
END;
$$;
COMMENT ON FUNCTION poky.renew_changes IS
'Make the partitions of changes for today and two days more, drop those that are kept no longer; how many. 55P03: one was in use, try again later.';

-- How they are read.

CREATE OR REPLACE FUNCTION poky._changes_between(
    p_id integer, p_seen pg_snapshot, p_until pg_snapshot, p_last bigint, p_prefix text,
    p_limit integer
)
RETURNS SETOF poky._change
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN QUERY
    SELECT c.* FROM (
        SELECT l.* FROM poky._change AS l
        WHERE l.bucket_id = p_id AND l.xid >= pg_snapshot_xmax(p_seen)
            AND l.xid < pg_snapshot_xmax(p_until)
        UNION ALL
        SELECT l.* FROM poky._change AS l
        WHERE l.bucket_id = p_id AND l.xid = ANY (ARRAY(SELECT pg_snapshot_xip(p_seen)))
    ) AS c
    WHERE pg_visible_in_snapshot(c.xid, p_until) AND c.revision > p_last
        AND c.key >= p_prefix AND c.key < p_prefix || chr(127)
    ORDER BY c.revision
    LIMIT p_limit;
END;
$$;
COMMENT ON FUNCTION poky._changes_between IS
'The changes that one snapshot does not have and a later one has, by revision, from above p_last.';

CREATE OR REPLACE FUNCTION poky._read_changes(
    p_id integer, p_stay integer, p_after record, p_end pg_snapshot, p_next text, p_prefix text,
    p_limit integer,
    OUT key text, OUT result text, OUT revision bigint, OUT hash text, OUT modified_at bigint,
    OUT xid bigint, OUT next text, OUT policy text
)
RETURNS SETOF record
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    v_seen pg_snapshot := p_after.seen;
    v_until pg_snapshot := p_after.until;
    v_seen_at timestamptz := p_after.seen_at;
    v_until_at timestamptz := p_after.until_at;
    v_last bigint := p_after.last;
    v_stay text := CASE WHEN p_stay > 0 THEN p_stay || 's' ELSE '' END;
    v_change poky._change;
    v_left integer := p_limit;
    v_is_last boolean := false;
    v_window_text text;
BEGIN
    FOR v_window IN 1 .. 20 LOOP
        IF v_until IS NULL
            AND pg_snapshot_xmax(p_end)::text::bigint - pg_snapshot_xmax(v_seen)::text::bigint > 1000
        THEN
            SELECT c.step, c.recorded_at INTO v_until, v_until_at FROM poky._change AS c
            WHERE c.bucket_id = p_id AND c.step IS NOT NULL
                AND pg_snapshot_xmax(c.step) > pg_snapshot_xmax(v_seen)
                AND pg_snapshot_xmax(c.step) <= pg_snapshot_xmax(p_end)
                AND poky._includes(c.step, v_seen)
            ORDER BY pg_snapshot_xmax(c.step) LIMIT 1;
        END IF;
        IF v_until IS NULL THEN
            v_until := p_end;
            v_until_at := clock_timestamp();
            v_is_last := true;
        END IF;
        v_window_text := v_stay || poky._cursor(v_seen, v_seen_at) || '_'
            || poky._cursor(v_until, v_until_at) || '_';
        FOR v_change IN
            SELECT * FROM poky._changes_between(p_id, v_seen, v_until, v_last, p_prefix, v_left)
        LOOP
            key := v_change.key;
            result := v_change.result;
            revision := v_change.revision;
            hash := v_change.hash;
            modified_at := v_change.modified_at;
            xid := v_change.xid::text::bigint;
            next := v_window_text || v_change.revision;
            v_left := v_left - 1;
            RETURN NEXT;
        END LOOP;
        EXIT WHEN v_left = 0;
        v_seen := v_until;
        v_seen_at := v_until_at;
        next := v_stay || poky._cursor(v_seen, v_seen_at);
        EXIT WHEN v_is_last;
        v_until := NULL;
        v_last := 0;
    END LOOP;
    key := NULL;
    result := 'more';
    IF v_is_last AND v_left > 0 THEN
        result := CASE WHEN p_next IS NULL THEN 'last' ELSE 'more' END;
        next := coalesce(p_next, next);
    END IF;
    SELECT p.tag INTO policy FROM poky.policy AS p;
    RETURN NEXT;
END;
$$;
COMMENT ON FUNCTION poky._read_changes IS
'Changes of one stay of a bucket after a cursor (poky._read_cursor) and up to a snapshot, as poky.changes gives them; p_next: the cursor of what follows the stay, null: it has not ended.';

CREATE OR REPLACE FUNCTION poky.changes(
    p_bucket text, p_after text, p_prefix text, p_limit integer,
    OUT key text, OUT result text, OUT revision bigint, OUT hash text, OUT modified_at bigint,
    OUT xid bigint, OUT next text, OUT policy text
)
RETURNS SETOF record
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
DECLARE
    v_bucket poky.bucket;
    v_now pg_snapshot := poky._settled_snapshot();
    v_stay integer;
    v_after record;
BEGIN
    SELECT * INTO v_bucket FROM poky.bucket AS b WHERE b.name = p_bucket;
    IF v_bucket.id IS NULL AND NOT poky._is_flat() THEN
        PERFORM poky._refuse_bucket(p_bucket);
    ELSIF v_bucket.changes_kept IS NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'PK404',
            HINT = 'changes_off',
            MESSAGE = format('The changes of the bucket %s are not recorded.', p_bucket);
    END IF;
    v_stay := v_bucket.stay;
    IF p_after IN ('', '0') THEN
        SELECT
            CASE WHEN p_after = '' THEN v_now ELSE v_bucket.changes_since END AS seen,
            NULL::pg_snapshot AS until, clock_timestamp() AS seen_at, clock_timestamp() AS until_at,
            0::bigint AS last
        INTO v_after;
        IF p_after = '0' AND v_bucket.former IS NOT NULL THEN
            v_stay := poky._oldest_stay(v_bucket);
        END IF;
    ELSE
        v_after := poky._read_cursor(p_after);
        v_stay := poky._stay_of(p_after);
    END IF;
    PERFORM poky._refuse_gone(v_after.seen_at, v_bucket.changes_kept, v_stay = v_bucket.stay AND (
        NOT poky._includes(v_after.seen, v_bucket.changes_since)
        OR pg_snapshot_xmax(v_after.seen) > pg_snapshot_xmax(v_now)
        -- Of a bucket of this name in another database, where numbers of transactions mean others.
        OR v_after.seen_at < date_trunc('second', v_bucket.created_at)
    ));
    IF v_stay <> v_bucket.stay THEN
        PERFORM poky._refuse_former(v_bucket, v_stay);
    END IF;
    RETURN QUERY SELECT c.* FROM poky._read_changes(
        v_bucket.id, v_stay, v_after, v_now, NULL, p_prefix, p_limit
    ) AS c;
END;
$$;
COMMENT ON FUNCTION poky.changes IS
'Up to p_limit changes after a cursor (empty: none yet; 0: the oldest kept) whose key starts with p_prefix, each once and those of a key in their order, each with the cursor after it; then a row without a key: whether there is more, the cursor of what comes next, and the policy of this moment. PK404: no such bucket, or its changes are not recorded; PK410: they are not kept so long; PK503 changes_elsewhere: of a stay in another database (poky.former_changes), the detail says in which; PK400.';
