-- Buckets, and the database as a whole.

CREATE OR REPLACE FUNCTION poky._create_table(p_id integer, p_parent text) RETURNS text
LANGUAGE plpgsql
AS $$
DECLARE
    v_leaf text := '_o_' || p_id;
BEGIN
    EXECUTE format('CREATE TABLE poky.%I (LIKE poky.%I INCLUDING ALL)', v_leaf, p_parent);
    EXECUTE format(
        'ALTER TABLE poky.%I SET (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.02)', v_leaf
    );
    RETURN v_leaf;
END;
$$;
COMMENT ON FUNCTION poky._create_table IS
'Create the table of one bucket, which is no partition yet; its name.';

CREATE OR REPLACE FUNCTION poky._create_leaf(p_id integer, p_parent text) RETURNS text
LANGUAGE plpgsql
AS $$
DECLARE
    v_leaf text := poky._create_table(p_id, p_parent);
BEGIN
    -- ATTACH lets readers and writers pass; PARTITION OF would stop them all.
    EXECUTE format(
        'ALTER TABLE poky.%I ATTACH PARTITION poky.%I FOR VALUES IN (%s)', p_parent, v_leaf, p_id
    );
    PERFORM poky._create_functions(p_id);
    RETURN v_leaf;
END;
$$;
COMMENT ON FUNCTION poky._create_leaf IS
'Create and attach the partition of one bucket, with the bucket''s functions.';

CREATE OR REPLACE FUNCTION poky.ensure_bucket(p_bucket text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
DECLARE
    v_bucket poky.bucket;
BEGIN
    PERFORM poky._check_names(p_bucket, '{}');
    SELECT * INTO v_bucket FROM poky.bucket WHERE name = p_bucket;
    IF v_bucket.declared THEN
        RETURN false;
    END IF;
    PERFORM poky._settle_name(p_bucket);
    INSERT INTO poky.bucket AS b (name) VALUES (p_bucket)
    ON CONFLICT (name) DO UPDATE SET declared = true WHERE NOT b.declared
    RETURNING * INTO v_bucket;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    IF v_bucket.leaf IS NULL AND NOT poky._is_flat() THEN
        UPDATE poky.bucket SET leaf = poky._create_leaf(v_bucket.id, '_object')
        WHERE id = v_bucket.id;
    END IF;
    RETURN true;
END;
$$;
COMMENT ON FUNCTION poky.ensure_bucket IS 'Create a bucket unless it is there; true if created. PK400, PK421.';

CREATE OR REPLACE FUNCTION poky._lock_patiently(p_locks text, p_tries integer) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    FOR v_try IN 1 .. p_tries LOOP
        BEGIN
            -- Requests queue behind such a lock, so no try waits for long.
            PERFORM set_config('lock_timeout', '100ms', true);
            EXECUTE p_locks;
            RETURN;
        EXCEPTION WHEN lock_not_available THEN
            IF v_try = p_tries THEN
                RAISE;
            END IF;
        END;
        PERFORM pg_sleep(0.1 * random());
    END LOOP;
END;
$$;
COMMENT ON FUNCTION poky._lock_patiently IS
'Execute LOCK TABLE statements, all or none, in tries of 0.1 s. 55P03.';

CREATE OR REPLACE FUNCTION poky._lock_leaf(p_leaf text) RETURNS void
LANGUAGE sql
AS $$
    SELECT poky._lock_patiently(format(
        'LOCK TABLE ONLY poky._object IN ACCESS EXCLUSIVE MODE;'
        ' LOCK TABLE poky.%I IN ACCESS EXCLUSIVE MODE', p_leaf
    ), 10)
$$;
COMMENT ON FUNCTION poky._lock_leaf IS
'Lock a partition to drop it: the parent first, as an insert does, or they would deadlock.';

CREATE OR REPLACE FUNCTION poky._has_keys(p_bucket poky.bucket) RETURNS boolean
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    v_has_keys boolean;
BEGIN
    EXECUTE format(
        'SELECT EXISTS (SELECT FROM poky.%I WHERE bucket_id = $1'
        ' AND (expires_at IS NULL OR expires_at > statement_timestamp()))',
        coalesce(p_bucket.leaf, '_object')
    ) INTO v_has_keys USING p_bucket.id;
    RETURN v_has_keys;
END;
$$;
COMMENT ON FUNCTION poky._has_keys IS 'Whether a bucket has an object that has not expired.';

CREATE OR REPLACE FUNCTION poky.drop_bucket(p_bucket text, p_keys boolean DEFAULT false)
RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
DECLARE
    v_bucket poky.bucket;
    v_has_keys boolean;
BEGIN
    SELECT * INTO v_bucket FROM poky.bucket WHERE name = p_bucket;
    IF v_bucket.leaf IS NOT NULL THEN
        -- Before the bucket's row, which a delete locks after its object (poky._settle_later).
        PERFORM poky._lock_leaf(v_bucket.leaf);
        PERFORM FROM poky.bucket WHERE id = v_bucket.id FOR UPDATE;
        PERFORM poky._refuse_moving(v_bucket.id);
    END IF;
    v_has_keys := poky._has_keys(v_bucket);
    IF v_bucket.id IS NULL OR NOT (v_bucket.declared OR v_has_keys) THEN
        PERFORM poky._refuse_bucket(p_bucket);
    END IF;
    IF v_has_keys AND NOT p_keys THEN
        RAISE EXCEPTION USING
            ERRCODE = 'PK409',
            HINT = 'bucket_not_empty',
            MESSAGE = format('The bucket %s has keys.', p_bucket);
    END IF;
    IF v_bucket.leaf IS NOT NULL THEN
        EXECUTE format('DROP TABLE poky.%I', v_bucket.leaf);
        PERFORM poky._drop_functions(v_bucket.id);
        DELETE FROM poky.bucket WHERE id = v_bucket.id;
    ELSE
        -- The row stays: a writer may have read its id already.
        DELETE FROM poky._object WHERE bucket_id = v_bucket.id;
        v_has_keys := FOUND;
        -- The triggers stay until another bucket's recording begins or ends.
        UPDATE poky.bucket SET declared = false, changes_kept = NULL, changes_since = NULL
        WHERE id = v_bucket.id;
    END IF;
    IF v_has_keys AND EXISTS (SELECT FROM poky.cache_node) THEN
        RETURN poky._announce(p_bucket, '', nextval('poky.revision'));
    END IF;
    RETURN NULL;
END;
$$;
COMMENT ON FUNCTION poky.drop_bucket IS
'Drop a bucket, with its keys only if p_keys; the outbox_id, or null where no cache must hear of it. PK404: no such bucket; PK409: it has keys.';

CREATE OR REPLACE FUNCTION poky.buckets(
    OUT name text, OUT kind text, OUT estimated_rows bigint, OUT bytes bigint,
    OUT default_ttl integer, OUT changes_kept integer
)
RETURNS SETOF record
LANGUAGE plpgsql SECURITY DEFINER  -- volatile: EXPLAIN asks for it
SET search_path = poky, pg_temp
AS $$
DECLARE
    v_bucket poky.bucket;
    v_plan json;
    v_all real;
BEGIN
    FOR v_bucket IN SELECT * FROM poky.bucket AS b ORDER BY b.name LOOP
        IF NOT v_bucket.declared THEN
            CONTINUE WHEN NOT poky._has_keys(v_bucket);
        END IF;
        name := v_bucket.name;
        changes_kept := v_bucket.changes_kept;
        default_ttl := v_bucket.default_ttl;
        IF v_bucket.leaf IS NOT NULL THEN
            kind := 'partitioned';
            SELECT greatest(c.reltuples, 0), pg_total_relation_size(c.oid)
            INTO estimated_rows, bytes
            FROM pg_catalog.pg_class AS c WHERE c.oid = format('poky.%I', v_bucket.leaf)::regclass;
        ELSE
            kind := 'flat';
            -- The planner's guess: counting would read the whole bucket.
            EXECUTE format(
                'EXPLAIN (FORMAT json) SELECT FROM poky._object WHERE bucket_id = %s', v_bucket.id
            ) INTO v_plan;
            estimated_rows := (v_plan -> 0 -> 'Plan' ->> 'Plan Rows')::bigint;
            SELECT greatest(c.reltuples, 1), pg_total_relation_size(c.oid) INTO v_all, bytes
            FROM pg_catalog.pg_class AS c WHERE c.oid = 'poky._object'::regclass;
            bytes := bytes * least(estimated_rows / v_all, 1);
        END IF;
        RETURN NEXT;
    END LOOP;
END;
$$;
COMMENT ON FUNCTION poky.buckets IS
'All buckets by name, with PostgreSQL''s estimate of rows and the bytes on disk (estimated if flat).';

CREATE OR REPLACE FUNCTION poky.status(OUT kind text, OUT migrations text []) RETURNS record
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
    SELECT
        CASE WHEN poky._is_flat() THEN 'flat' ELSE 'partitioned' END,
        (SELECT array_agg(m.name ORDER BY m.name) FROM poky.migration AS m)
$$;
COMMENT ON FUNCTION poky.status IS 'The schema''s kind and the migrations it has.';
