-- The functions of one bucket: poky.get_many, poky.put with p_if_match, and poky.delete on the table
-- of one bucket, with the same parameters, so that PostgreSQL keeps their plans (decision 0010).
-- poky.ensure_bucket creates them, poky migrate replaces those whose template has changed,
-- poky.drop_bucket drops them. In the flat schema one set, number 0, serves all buckets.
--
-- Each reads poky.bucket first, to lock it first (migrations/README.md, rule 4). SQLSTATE 42P01 from
-- one of them: it did nothing, and the function for all buckets says what is wrong.

-- The templates, for format(): %1$I is the table. In poky._select_objects %2$s says which bucket: a
-- constant id where there is one, because a join by name costs a read a tenth of its time.

CREATE OR REPLACE FUNCTION poky._select_objects() RETURNS text
LANGUAGE sql IMMUTABLE
AS $template$
    SELECT $$
    SELECT
        o.key, o.revision, o.hash, o.modified_at,
        greatest(o.written_at, o.modified_at, b.unsettled_until), o.content_type, o.value,
        o.content_encoding
    FROM poky.bucket AS b CROSS JOIN poky.%1$I AS o
    WHERE %2$s AND o.key = ANY ($2)
    $$
$template$;
COMMENT ON FUNCTION poky._select_objects IS
'Template: the objects that have one of the keys $2, in the columns of poky.object; $1 is the bucket''s name.';

CREATE OR REPLACE FUNCTION poky._is_bucket(p_id integer) RETURNS text
LANGUAGE sql IMMUTABLE
AS $$
    SELECT format('b.id = %1$s AND o.bucket_id = %1$s', p_id)
$$;
COMMENT ON FUNCTION poky._is_bucket IS
'For poky._select_objects: the objects of the bucket with this id.';

CREATE OR REPLACE FUNCTION poky._update_object() RETURNS text
LANGUAGE sql IMMUTABLE
AS $template$
    SELECT $$
    -- PostgreSQL draws the revision once it has found the row. If another transaction replaces the
    -- row first, it evaluates both again: the conditions and the revision.
    UPDATE poky.%1$I AS o SET
        revision = nextval('poky.revision'),
        hash = v_hash,
        modified_at = coalesce(p_modified_at, o.modified_at),
        written_at = v_now,
        content_type = p_content_type,
        content_encoding = p_attributes ->> 'content_encoding',
        value = p_value
    WHERE o.bucket_id = p_id AND o.key = p_key
        AND poky._matches(p_if_match, o.revision, o.hash, o.modified_at)
        AND (p_modified_at IS NULL OR p_modified_at >= o.modified_at)
        AND (
            p_if_none_match IS NULL
            OR NOT poky._matches(p_if_none_match, o.revision, o.hash, o.modified_at)
        )
    RETURNING o.revision, o.modified_at INTO v_revision, v_modified_at;
    IF v_revision IS NULL THEN
        RETURN (
            NULL, 'rejected', NULL, NULL, NULL, CASE WHEN p_has_caches THEN 0 END
        )::poky.outcome;
    END IF;
    RETURN (
        NULL, 'updated', v_revision, v_hash, v_modified_at,
        CASE WHEN p_has_caches THEN poky._announce(p_bucket, p_key, v_revision) END
    )::poky.outcome;
    $$
$template$;
COMMENT ON FUNCTION poky._update_object IS
'Template: replace an object if p_if_match and the other conditions hold.';

CREATE OR REPLACE FUNCTION poky._delete_object() RETURNS text
LANGUAGE sql IMMUTABLE
AS $template$
    SELECT $$
    IF p_if_none_match IS NOT NULL OR p_unmodified_since IS NOT NULL THEN
        -- Locked, to tell an object that is missing from one that does not match.
        PERFORM FROM poky.%1$I AS o WHERE o.bucket_id = p_id AND o.key = p_key FOR UPDATE;
        IF NOT FOUND THEN
            RETURN (
                NULL, v_outcome, NULL, NULL, NULL, CASE WHEN p_has_caches THEN 0 END
            )::poky.outcome;
        END IF;
        v_outcome := 'rejected';
    END IF;
    DELETE FROM poky.%1$I AS o
    WHERE o.bucket_id = p_id AND o.key = p_key
        AND (
            p_if_match IS NULL
            OR poky._matches(p_if_match, o.revision, o.hash, o.modified_at)
        )
        AND (
            p_if_none_match IS NULL
            OR NOT poky._matches(p_if_none_match, o.revision, o.hash, o.modified_at)
        )
        AND (p_unmodified_since IS NULL OR p_unmodified_since >= o.modified_at)
    RETURNING o.modified_at INTO v_modified_at;
    IF v_modified_at IS NULL THEN
        RETURN (
            NULL, v_outcome, NULL, NULL, NULL, CASE WHEN p_has_caches THEN 0 END
        )::poky.outcome;
    END IF;
    IF p_is_last THEN
        PERFORM poky._settle_later(p_id, v_modified_at);
    END IF;
    RETURN (
        NULL, 'deleted', NULL, NULL, v_modified_at,
        CASE WHEN p_has_caches THEN poky._announce(p_bucket, p_key, nextval('poky.revision')) END
    )::poky.outcome;
    $$
$template$;
COMMENT ON FUNCTION poky._delete_object IS
'Template: delete an object if the conditions hold; p_is_last: the transaction locks no other object after it.';

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
        ' BEGIN SELECT b.id, EXISTS (SELECT FROM poky.cache_node) INTO p_id, p_has_caches'
        ' FROM poky.bucket AS b WHERE b.name = p_bucket;'
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
        END
    ) || '; END';
    RETURN NEXT;

    name := 'update_' || p_number;
    parameters :=
        'p_bucket text, p_key text, p_value bytea, p_content_type text, p_modified_at bigint,'
        ' p_if_match text, p_if_none_match text, p_hash text, p_attributes jsonb';
    result := 'poky.outcome';
    source :=
        'DECLARE p_id integer; p_has_caches boolean;' || poky._update_variables()
        || v_find_bucket || format(poky._update_object(), v_table) || 'END';
    RETURN NEXT;

    name := 'delete_' || p_number;
    parameters :=
        'p_bucket text, p_key text, p_if_match text, p_if_none_match text,'
        ' p_unmodified_since bigint';
    source :=
        'DECLARE p_id integer; p_has_caches boolean; p_is_last constant boolean := true;'
        || poky._delete_variables()
        || v_find_bucket || format(poky._delete_object(), v_table) || 'END';
    RETURN NEXT;
END;
$$;
COMMENT ON FUNCTION poky._bucket_functions IS
'The functions that the bucket with this id should have, as text; number 0: the flat schema''s.';

CREATE OR REPLACE FUNCTION poky._update_variables() RETURNS text
LANGUAGE sql IMMUTABLE
AS $template$
    SELECT $$
    v_now bigint := floor(date_part('epoch', clock_timestamp()));
    v_hash text := coalesce(p_hash, encode(substr(sha256(p_value), 1, 4), 'hex'));
    v_revision bigint;
    v_modified_at bigint;
    $$
$template$;
COMMENT ON FUNCTION poky._update_variables IS 'Template: what poky._update_object declares.';

CREATE OR REPLACE FUNCTION poky._delete_variables() RETURNS text
LANGUAGE sql IMMUTABLE
AS $template$
    SELECT $$
    v_outcome text := CASE WHEN p_if_match IS NULL THEN 'missing' ELSE 'rejected' END;
    v_modified_at bigint;
    $$
$template$;
COMMENT ON FUNCTION poky._delete_variables IS 'Template: what poky._delete_object declares.';

-- The same templates for the table of all buckets, for poky.put, poky.delete and batches.
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
END;
$do$;
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
    SELECT 0 WHERE poky._is_flat()
    LIMIT 1
$$;
COMMENT ON FUNCTION poky.function_number IS
'The number n of the bucket''s own functions: get_n for poky.get_many, update_n for poky.put with p_if_match, delete_n for poky.delete, with the same parameters. 0 in the flat schema; null: there is no such bucket.';
