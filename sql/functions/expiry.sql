-- Objects that expire. poky._object.expires_at decides, by PostgreSQL's clock: reads compare it with
-- their statement's start, writes with the clock under the row's lock. poky._expiry is the queue by
-- which expired rows are found: no index on the objects, so those without expiry pay nothing.

CREATE OR REPLACE FUNCTION poky._check_ttl(p_ttl numeric) RETURNS void
LANGUAGE plpgsql IMMUTABLE
AS $$
BEGIN
    IF (p_ttl BETWEEN 0 AND 1000000000 AND p_ttl = trunc(p_ttl)) IS NOT TRUE THEN
        RAISE EXCEPTION USING
            ERRCODE = 'PK400',
            HINT = 'bad_ttl',
            MESSAGE = 'A ttl is a whole number of seconds from 1 to 1000000000, or 0 for never.';
    END IF;
END;
$$;
COMMENT ON FUNCTION poky._check_ttl IS 'PK400 unless this is a ttl.';

CREATE OR REPLACE FUNCTION poky._expires_at(p_attributes jsonb) RETURNS timestamptz
LANGUAGE plpgsql
AS $$
DECLARE
    v_ttl numeric := p_attributes ->> 'ttl';
BEGIN
    IF v_ttl IS NOT NULL THEN
        PERFORM poky._check_ttl(v_ttl);
        RETURN CASE WHEN v_ttl > 0 THEN clock_timestamp() + make_interval(secs => v_ttl::float8) END;
    END IF;
    RETURN to_timestamp((p_attributes ->> 'expires_at')::bigint);
END;
$$;
COMMENT ON FUNCTION poky._expires_at IS
'When an object that is written now with these attributes expires; null: never. PK400.';

-- Two functions for poky._select_objects. Strict, so that they are not called for an object that does
-- not expire; not in SQL, for PostgreSQL would inline them into each read and initialize ten
-- expressions, used or not: 3 % of its time.
CREATE OR REPLACE FUNCTION poky._expiry_second(p_expires_at timestamptz) RETURNS bigint
LANGUAGE plpgsql IMMUTABLE STRICT
AS $$
BEGIN
    RETURN ceil(extract(epoch FROM p_expires_at));
END;
$$;
COMMENT ON FUNCTION poky._expiry_second IS 'The second in which an object expires; null: never.';

CREATE OR REPLACE FUNCTION poky._milliseconds_left(p_expires_at timestamptz) RETURNS bigint
LANGUAGE plpgsql STABLE STRICT
AS $$
BEGIN
    RETURN floor(extract(epoch FROM p_expires_at - statement_timestamp()) * 1000);
END;
$$;
COMMENT ON FUNCTION poky._milliseconds_left IS
'How long an object lives, from the start of the statement on; null: for ever.';

CREATE OR REPLACE FUNCTION poky._with_ttl(p_attributes jsonb, p_ttl integer) RETURNS jsonb
LANGUAGE sql IMMUTABLE
AS $$
    SELECT CASE
        WHEN p_attributes ->> 'ttl' IS NULL AND p_attributes ->> 'expires_at' IS NULL
            THEN coalesce(p_attributes, '{}') || jsonb_build_object('ttl', p_ttl)
        ELSE p_attributes
    END
$$;
COMMENT ON FUNCTION poky._with_ttl IS
'The attributes of an object in a bucket that has a default ttl: a write''s own comes first.';

CREATE OR REPLACE FUNCTION poky._queue_expiry(p_id integer, p_key text, p_expires_at timestamptz)
RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    -- Later than it stands there: poky.reap will come too early, and put the row off.
    INSERT INTO poky._expiry AS e (due_at, bucket_id, key) VALUES (p_expires_at, p_id, p_key)
    ON CONFLICT (bucket_id, key) DO UPDATE SET due_at = excluded.due_at
    WHERE excluded.due_at < e.due_at;
END;
$$;
COMMENT ON FUNCTION poky._queue_expiry IS
'Have poky.reap look at an object then; to be called while the object''s row is locked.';

CREATE OR REPLACE FUNCTION poky.set_bucket_ttl(p_bucket text, p_ttl integer) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
DECLARE
    v_bucket poky.bucket;
    v_ttl integer := nullif(p_ttl, 0);
BEGIN
    PERFORM poky._check_ttl(p_ttl);
    v_bucket := poky._bucket_for_writing(p_bucket, '{}');
    UPDATE poky.bucket SET default_ttl = v_ttl
    WHERE id = v_bucket.id AND default_ttl IS DISTINCT FROM v_ttl;
    RETURN FOUND;
END;
$$;
COMMENT ON FUNCTION poky.set_bucket_ttl IS
'Give a bucket the ttl of objects that are written without one from now on; 0: never. False if it had it. PK400, PK404.';

CREATE OR REPLACE FUNCTION poky.expiry_lag() RETURNS double precision
LANGUAGE sql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
    SELECT extract(epoch FROM clock_timestamp() - e.due_at)::double precision
    FROM poky._expiry AS e WHERE e.due_at <= clock_timestamp() ORDER BY e.due_at LIMIT 1
$$;
COMMENT ON FUNCTION poky.expiry_lag IS
'For how many seconds the oldest object has waited for poky.reap; null: none does.';

CREATE OR REPLACE FUNCTION poky._reap(
    p_bucket poky.bucket, p_keys text [], OUT removed text [], OUT kept text [], OUT latest bigint
)
RETURNS record
LANGUAGE plpgsql
AS $$
DECLARE
    v_table text := coalesce(p_bucket.leaf, '_object');
BEGIN
    IF p_bucket.id IS NULL THEN
        RETURN;  -- dropped
    END IF;
    -- What a writer holds is left for later: a reaper that waited could deadlock with batches.
    EXECUTE format(
        'WITH expired AS MATERIALIZED ('
        ' SELECT o.key FROM poky.%1$I AS o WHERE o.bucket_id = $1 AND o.key = ANY ($2)'
        ' AND o.expires_at <= clock_timestamp() FOR UPDATE SKIP LOCKED'
        '), deleted AS ('
        ' DELETE FROM poky.%1$I AS o USING expired AS e'
        ' WHERE o.bucket_id = $1 AND o.key = e.key RETURNING o.key, o.modified_at'
        ') SELECT array_agg(d.key), max(d.modified_at) FROM deleted AS d', v_table
    ) INTO removed, latest USING p_bucket.id, p_keys;
    EXECUTE format(
        'SELECT array_agg(o.key) FROM poky.%I AS o'
        ' WHERE o.bucket_id = $1 AND o.key = ANY ($2) AND o.expires_at IS NOT NULL', v_table
    ) INTO kept USING p_bucket.id, p_keys;
EXCEPTION WHEN lock_not_available OR undefined_table THEN
    kept := p_keys;
END;
$$;
COMMENT ON FUNCTION poky._reap IS
'Remove those of a bucket''s objects that have expired: their keys; those that expire later, or are locked; the latest modified_at.';

CREATE OR REPLACE FUNCTION poky._put_off(p_id integer, p_keys text []) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    EXECUTE format(
        'UPDATE poky._expiry AS e'
        ' SET due_at = greatest(o.expires_at, clock_timestamp() + interval ''5 seconds'')'
        ' FROM poky.%I AS o WHERE o.bucket_id = $1 AND o.key = ANY ($2)'
        ' AND e.bucket_id = o.bucket_id AND e.key = o.key',
        (SELECT coalesce(b.leaf, '_object') FROM poky.bucket AS b WHERE b.id = p_id)
    ) USING p_id, p_keys;
EXCEPTION WHEN lock_not_available OR undefined_table THEN
    UPDATE poky._expiry AS e SET due_at = clock_timestamp() + interval '5 seconds'
    WHERE e.bucket_id = p_id AND e.key = ANY (p_keys);
END;
$$;
COMMENT ON FUNCTION poky._put_off IS 'Have poky.reap look at objects again once they have expired.';

CREATE OR REPLACE FUNCTION poky.reap(p_limit integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = poky, pg_temp
SET lock_timeout = 100
AS $$
DECLARE
    v_due record;
    v_reaped record;
    v_count integer := 0;
    v_settled jsonb := '{}';
BEGIN
    LOCK TABLE poky.bucket IN ACCESS SHARE MODE;
    FOR v_due IN
        SELECT d.bucket_id, array_agg(d.key) AS keys
        FROM (
            SELECT e.bucket_id, e.key FROM poky._expiry AS e
            WHERE e.due_at <= clock_timestamp()
            ORDER BY e.due_at LIMIT p_limit FOR UPDATE SKIP LOCKED
        ) AS d
        GROUP BY d.bucket_id ORDER BY d.bucket_id
    LOOP
        SELECT r.* INTO v_reaped
        FROM (SELECT v_due.bucket_id AS id) AS d
        LEFT JOIN poky.bucket AS b ON d.id = b.id
        CROSS JOIN LATERAL poky._reap(b, v_due.keys) AS r;
        DELETE FROM poky._expiry AS e
        WHERE e.bucket_id = v_due.bucket_id AND e.key = ANY (v_due.keys)
            AND e.key <> ALL (coalesce(v_reaped.kept, '{}'));
        IF v_reaped.kept IS NOT NULL THEN
            PERFORM poky._put_off(v_due.bucket_id, v_reaped.kept);
        END IF;
        v_count := v_count + coalesce(cardinality(v_reaped.removed), 0);
        IF v_reaped.latest > extract(epoch FROM clock_timestamp()) THEN
            v_settled := v_settled || jsonb_build_object(v_due.bucket_id, v_reaped.latest);
        END IF;
    END LOOP;
    -- Buckets last, in the order of their numbers.
    PERFORM poky._settle_later(s.key::integer, s.value::bigint)
    FROM (SELECT * FROM jsonb_each_text(v_settled) ORDER BY key::integer) AS s;
    RETURN v_count;
END;
$$;
COMMENT ON FUNCTION poky.reap IS
'Remove up to p_limit objects that have expired, the oldest first; how many. It waits for no writer: what one holds is looked at again five seconds later. Safe beside another one.';
