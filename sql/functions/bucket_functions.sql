-- The functions of one bucket: poky.get_many, poky.put with p_if_match, and poky.delete on the table
-- of one bucket (templates.sql), with the same parameters, so that PostgreSQL keeps their plans (decision 0010).
-- poky.ensure_bucket creates them, poky migrate replaces those whose template has changed,
-- poky.drop_bucket drops them. In the flat schema one set, number 0, serves all buckets.
--
-- Each reads poky.bucket first, to lock it first (migrations/README.md, rule 4). SQLSTATE 42P01 from
-- one of them: it did nothing, and the function for all buckets says what is wrong.

CREATE OR REPLACE FUNCTION poky._bucket_functions(
    p_number integer,
    OUT name text, OUT parameters text, OUT result text, OUT source text
)
RETURNS SETOF record
LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
    v_table text := CASE WHEN p_number = 0 THEN '_object' ELSE '_o_' || p_number END;
    v_find_bucket text :=
        ' BEGIN SELECT b.id, EXISTS (SELECT FROM poky.cache_node), b.default_ttl'
        ' INTO p_id, p_has_caches, v_default_ttl FROM poky.bucket AS b WHERE b.name = p_bucket;'
        ' IF NOT FOUND THEN RAISE undefined_table; END IF;';
BEGIN
    name := 'get_' || p_number;
    parameters := 'p_bucket text, p_keys text[]';
    result := 'SETOF poky.object STABLE';
    source := 'BEGIN RETURN QUERY' || format(
        poky._select_objects(), v_table,
        CASE
            WHEN p_number = 0 THEN 'b.name = $1 AND o.bucket_id = b.id'
            ELSE poky._is_bucket(p_number)
        END,
        '$2'
    ) || '; END';
    RETURN NEXT;

    name := 'update_' || p_number;
    parameters :=
        'p_bucket text, p_key text, p_value bytea, p_content_type text, p_modified_at bigint,'
        ' p_if_match text, p_if_none_match text, p_hash text, p_attributes jsonb';
    result := 'poky.outcome';
    source :=
        'DECLARE p_id integer; p_has_caches boolean; v_default_ttl integer;'
        || poky._update_variables() || v_find_bucket
        || ' IF v_default_ttl IS NOT NULL THEN'
        ' p_attributes := poky._with_ttl(p_attributes, v_default_ttl); END IF;'
        || format(poky._update_object(), v_table) || 'END';
    RETURN NEXT;

    name := 'delete_' || p_number;
    parameters :=
        'p_bucket text, p_key text, p_if_match text, p_if_none_match text,'
        ' p_unmodified_since bigint';
    source :=
        'DECLARE p_id integer; p_has_caches boolean; p_is_last constant boolean := true;'
        ' v_default_ttl integer;' || poky._delete_variables()
        || v_find_bucket || format(poky._delete_object(), v_table) || 'END';
    RETURN NEXT;
END;
$$;
COMMENT ON FUNCTION poky._bucket_functions IS
'The functions that the bucket with this id should have, as text; number 0: the flat schema''s.';

-- The same templates for the table of all buckets, for poky.put, poky.delete, batches and poky.get_each.
DO $do$
BEGIN
    EXECUTE format(
        'CREATE OR REPLACE FUNCTION poky._update('
        ' p_id integer, p_bucket text, p_has_caches boolean, p_key text, p_value bytea,'
        ' p_content_type text, p_modified_at bigint, p_if_match text, p_if_none_match text,'
        ' p_hash text, p_attributes jsonb) RETURNS poky.outcome LANGUAGE plpgsql AS %L',
        'DECLARE' || poky._update_variables()
        || 'BEGIN' || format(poky._update_object(), '_object') || 'END'
    );
    EXECUTE format(
        'CREATE OR REPLACE FUNCTION poky._delete('
        ' p_id integer, p_bucket text, p_has_caches boolean, p_key text, p_if_match text,'
        ' p_if_none_match text, p_unmodified_since bigint, p_is_last boolean)'
        ' RETURNS poky.outcome LANGUAGE plpgsql AS %L',
        'DECLARE' || poky._delete_variables()
        || 'BEGIN' || format(poky._delete_object(), '_object') || 'END'
    );
    EXECUTE format(
        'CREATE OR REPLACE FUNCTION poky._get_each_flat('
        ' p_buckets text [], p_ends integer [], p_keys text []) RETURNS TABLE ('
        ' bucket integer, key text, revision bigint, hash text, modified_at bigint,'
        ' unchanged_since bigint, content_type text, value bytea, content_encoding text,'
        ' expires_at bigint, milliseconds_left bigint) LANGUAGE plpgsql STABLE'
        -- The plan is kept while the table grows: it must look up each key, however few there are.
        ' SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off AS %L',
        'BEGIN RETURN QUERY SELECT w.number, o.* FROM ('
        ' SELECT n AS number, p_buckets[n] AS bucket,'
        '  p_keys[coalesce(p_ends[n - 1], 0) + 1 : p_ends[n]] AS keys'
        ' FROM generate_subscripts(p_buckets, 1) AS n'
        ') AS w CROSS JOIN LATERAL ('
        || format(
            poky._select_objects(), '_object', 'b.name = w.bucket AND o.bucket_id = b.id', 'w.keys'
        )
        || ') AS o; END'
    );
END;
$do$;
COMMENT ON FUNCTION poky._get_each_flat IS
'poky.get_each in the flat schema, by a plan that PostgreSQL keeps.';
COMMENT ON FUNCTION poky._update IS
'A put with p_if_match into a bucket that was found. Not with a generic plan: poky._plan_for_one_bucket.';
COMMENT ON FUNCTION poky._delete (
    integer, text, boolean, text, text, text, bigint, boolean
) IS
'A delete from a bucket that was found. Not with a generic plan: poky._plan_for_one_bucket.';

CREATE OR REPLACE FUNCTION poky._existing_functions(
    OUT number integer, OUT name text, OUT parameters text, OUT source text
)
RETURNS SETOF record
LANGUAGE sql STABLE
AS $$
    SELECT
        substring(p.proname FROM '[0-9]+$')::integer, p.proname, pg_get_function_arguments(p.oid),
        p.prosrc
    FROM pg_catalog.pg_proc AS p
    WHERE p.pronamespace = 'poky'::regnamespace AND p.proname ~ '^(get|put|update|delete)_[0-9]+$'
$$;
COMMENT ON FUNCTION poky._existing_functions IS
'All functions of single buckets; those named put_ are of release 0.1.0.';

CREATE OR REPLACE FUNCTION poky._functions_of(p_number integer) RETURNS SETOF regprocedure
LANGUAGE sql STABLE
AS $$
    SELECT p.oid::regprocedure FROM pg_catalog.pg_proc AS p
    WHERE p.pronamespace = 'poky'::regnamespace AND p.proname = ANY (ARRAY[
        'get_' || p_number, 'put_' || p_number, 'update_' || p_number, 'delete_' || p_number
    ]::name [])
$$;
COMMENT ON FUNCTION poky._functions_of IS
'The functions of one bucket; by the index of pg_proc, which has three rows for each bucket.';

CREATE OR REPLACE FUNCTION poky._outdated_functions() RETURNS SETOF integer
LANGUAGE sql STABLE
AS $$
    SELECT DISTINCT coalesce(f.number, e.number)
    FROM (
        SELECT n.number, w.name, w.parameters, w.source
        FROM (
            SELECT b.id FROM poky.bucket AS b WHERE to_regclass('poky._o_' || b.id) IS NOT NULL
            UNION ALL
            SELECT 0 WHERE poky._is_flat()
        ) AS n (number)
        CROSS JOIN LATERAL poky._bucket_functions(n.number) AS w
    ) AS f
    FULL OUTER JOIN poky._existing_functions() AS e
        ON f.name = e.name AND f.parameters = e.parameters AND f.source = e.source
    WHERE f.name IS NULL OR e.name IS NULL
    ORDER BY 1
$$;
COMMENT ON FUNCTION poky._outdated_functions IS
'The numbers of the buckets whose functions are missing, left over, or not as their templates.';

CREATE OR REPLACE FUNCTION poky._create_functions(p_number integer) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    v_function record;
BEGIN
    FOR v_function IN
        SELECT e.signature::text AS signature FROM poky._functions_of(p_number) AS e (signature)
        INNER JOIN pg_catalog.pg_proc AS p ON e.signature = p.oid
        WHERE NOT EXISTS (
            SELECT FROM poky._bucket_functions(p_number) AS f
            WHERE f.name = p.proname AND f.parameters = pg_get_function_arguments(p.oid)
        )
    LOOP
        EXECUTE 'DROP FUNCTION ' || v_function.signature;
    END LOOP;
    FOR v_function IN SELECT * FROM poky._bucket_functions(p_number) LOOP
        EXECUTE format(
            'CREATE OR REPLACE FUNCTION poky.%I(%s) RETURNS %s LANGUAGE plpgsql SECURITY DEFINER'
            ' SET search_path = poky, pg_temp AS %L',
            v_function.name, v_function.parameters, v_function.result, v_function.source
        );
        EXECUTE format('REVOKE ALL ON FUNCTION poky.%I FROM public', v_function.name);
        EXECUTE format('GRANT EXECUTE ON FUNCTION poky.%I TO poky_service', v_function.name);
    END LOOP;
END;
$$;
COMMENT ON FUNCTION poky._create_functions IS
'Make the functions of one bucket as their templates say. Not beside poky.drop_bucket.';

CREATE OR REPLACE FUNCTION poky._drop_functions(p_number integer) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    v_signature text;
BEGIN
    FOR v_signature IN
        SELECT e.signature::text FROM poky._functions_of(p_number) AS e (signature)
    LOOP
        EXECUTE 'DROP FUNCTION ' || v_signature;
    END LOOP;
END;
$$;
COMMENT ON FUNCTION poky._drop_functions IS 'Drop the functions of one bucket.';

CREATE OR REPLACE FUNCTION poky._renew_functions(p_number integer) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    -- Not beside poky.drop_bucket.
    PERFORM FROM poky.bucket WHERE id = p_number FOR UPDATE;
    IF to_regclass('poky._o_' || p_number) IS NOT NULL OR (p_number = 0 AND poky._is_flat()) THEN
        PERFORM poky._create_functions(p_number);
    ELSE
        PERFORM poky._drop_functions(p_number);
    END IF;
END;
$$;
COMMENT ON FUNCTION poky._renew_functions IS
'Make the functions of a bucket as their templates say, or drop what is left of them.';

DO $$
BEGIN
    IF poky._is_flat() THEN
        PERFORM poky._create_functions(0);
    END IF;
END;
$$;

CREATE OR REPLACE FUNCTION poky.function_number(p_bucket text) RETURNS integer
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
    SELECT CASE WHEN b.leaf IS NULL THEN 0 ELSE b.id END FROM poky.bucket AS b WHERE b.name = p_bucket
    UNION ALL
    SELECT 0 WHERE poky._is_flat() AND poky._is_name(p_bucket)
    LIMIT 1
$$;
COMMENT ON FUNCTION poky.function_number IS
'The number n of the bucket''s own functions: get_n for poky.get_many, update_n for poky.put with p_if_match, delete_n for poky.delete, with the same parameters. 0 in the flat schema; null: there is no such bucket.';
