-- Functions that one bucket has of its own.

CREATE OR REPLACE FUNCTION poky._own(
    p_bucket poky.bucket, p_verb text, p_signature text, p_source text
)
RETURNS text
LANGUAGE plpgsql
AS $$
DECLARE
    v_name text := p_verb || '_' || p_bucket.id;
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_catalog.pg_proc AS p
        WHERE p.proname = v_name AND p.pronamespace = 'poky'::regnamespace AND p.prosrc = p_source
    ) THEN
        -- One at a time, and not beside poky.drop_bucket.
        PERFORM FROM poky.bucket WHERE id = p_bucket.id FOR UPDATE;
        IF NOT FOUND THEN
            RETURN NULL;
        END IF;
        EXECUTE format(
            'CREATE OR REPLACE FUNCTION poky.%I%s LANGUAGE plpgsql SECURITY DEFINER'
            ' SET search_path = poky, pg_temp AS %L',
            v_name, p_signature, p_source
        );
        EXECUTE format('REVOKE ALL ON FUNCTION poky.%I FROM public', v_name);
        EXECUTE format('GRANT EXECUTE ON FUNCTION poky.%I TO poky_service', v_name);
        EXECUTE format(
            'COMMENT ON FUNCTION poky.%I IS %L', v_name, 'poky.' || p_verb || ' for one bucket.'
        );
    END IF;
    RETURN v_name;
END;
$$;
COMMENT ON FUNCTION poky._own IS
'Give a bucket a function of its own, unless it has it; its name, or null if the bucket is gone.';

CREATE OR REPLACE FUNCTION poky.reader(p_bucket text) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
DECLARE
    v_bucket poky.bucket;
BEGIN
    SELECT * INTO v_bucket FROM poky.bucket WHERE name = p_bucket;
    IF v_bucket.leaf IS NULL THEN
        RETURN CASE WHEN poky._is_flat() THEN '' END;
    END IF;
    RETURN poky._own(
        v_bucket, 'get', '(p_key text) RETURNS SETOF poky.object STABLE ROWS 1',
        -- poky.bucket comes first, so that it is locked first (migrations/README.md, rule 4).
        format(
            'BEGIN RETURN QUERY SELECT o.key, o.revision, o.hash, o.modified_at,'
            ' greatest(o.written_at, o.modified_at, b.unsettled_until), o.content_type, o.value'
            ' FROM poky.bucket AS b CROSS JOIN poky.%2$I AS o'
            ' WHERE b.id = %1$s AND o.bucket_id = %1$s AND o.key = p_key; END',
            v_bucket.id, v_bucket.leaf
        )
    );
END;
$$;
COMMENT ON FUNCTION poky.reader IS
'The name of a function that is poky.get for this bucket alone, at half the cost: its plan is kept. Made when first asked for, gone with the bucket. Null: no such bucket; empty: the schema is flat.';

CREATE OR REPLACE FUNCTION poky.writer(p_bucket text, p_verb text) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
DECLARE
    v_bucket poky.bucket;
    v_parameters text;
    v_source text;
BEGIN
    SELECT * INTO v_bucket FROM poky.bucket WHERE name = p_bucket;
    IF v_bucket.leaf IS NULL THEN
        RETURN CASE WHEN poky._is_flat() THEN '' END;
    END IF;
    -- poky._put or poky._delete as they stand, but with this bucket's table, id and name.
    SELECT
        substring(pg_get_function_arguments(p.oid) FROM 'p_key .*'),
        regexp_replace(
            regexp_replace(
                replace(p.prosrc, 'poky._object', format('poky.%I', v_bucket.leaf)),
                '\mp_id\M', v_bucket.id::text, 'g'
            ),
            '\mp_bucket\M', quote_literal(p_bucket), 'g'
        )
    INTO STRICT v_parameters, v_source
    FROM pg_catalog.pg_proc AS p
    WHERE p.oid = to_regprocedure(
        CASE p_verb
            WHEN 'put' THEN
                'poky._put(integer,text,boolean,text,bytea,text,bigint,text,text,text)'
            WHEN 'delete' THEN 'poky._delete(integer,text,boolean,text,text,text,bigint)'
        END
    );
    RETURN poky._own(
        v_bucket, p_verb, format('(%s) RETURNS poky.outcome', v_parameters),
        format(
            'DECLARE p_has_caches boolean; BEGIN'
            ' IF poky._is_key(p_key) IS NOT TRUE THEN'
            ' PERFORM poky._check_names(%L, ARRAY[p_key]); END IF;'
            ' SELECT EXISTS (SELECT FROM poky.cache_node) INTO p_has_caches'
            ' FROM poky.bucket AS b WHERE b.id = %s;'
            ' IF NOT FOUND THEN RAISE undefined_table; END IF;'
            '%sEND',
            p_bucket, v_bucket.id, v_source
        )
    );
END;
$$;
COMMENT ON FUNCTION poky.writer IS
'The name of a function that is poky.put or poky.delete for this bucket alone; as poky.reader. Error 42P01 from such a function: the bucket is gone, and nothing was done.';
