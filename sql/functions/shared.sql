-- Objects of any buckets that requests at the same moment ask for, or change: one statement for all.

CREATE OR REPLACE FUNCTION poky.get_each(
    p_buckets text [], p_ends integer [], p_keys text [], p_numbers integer []
)
RETURNS TABLE (
    bucket integer, key text, revision bigint, hash text, modified_at bigint,
    unchanged_since bigint, content_type text, value bytea, content_encoding text,
    expires_at bigint, milliseconds_left bigint
)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = poky, pg_temp
-- A bucket that is locked must not hold up the others: the caller asks for each object alone then.
SET lock_timeout = 100
AS $$
DECLARE
    v_id integer;
    v_table text;
    v_source text;
    v_begin integer := 1;
BEGIN
    IF p_numbers[1] = 0 THEN
        RETURN QUERY SELECT * FROM poky._get_each_flat(p_buckets, p_ends, p_keys);
        RETURN;
    END IF;
    FOR v_bucket IN 1 .. cardinality(p_buckets) LOOP
        IF p_numbers[v_bucket] IS NULL THEN
            SELECT b.id, coalesce(b.leaf, '_object') INTO v_id, v_table
            FROM poky.bucket AS b WHERE b.name = p_buckets[v_bucket];
            v_source := CASE WHEN v_table IS NOT NULL THEN '(' || format(
                poky._select_objects(), v_table, poky._is_bucket(v_id), '$2'
            ) || ')' END;
        ELSE
            v_source := 'poky.get_' || p_numbers[v_bucket] || '($1, $2)';
        END IF;
        IF v_source IS NULL THEN
            bucket := v_bucket;
            RETURN NEXT;
        ELSE
            RETURN QUERY EXECUTE 'SELECT $3, o.* FROM ' || v_source || ' AS o'
            USING p_buckets[v_bucket], p_keys[v_begin:p_ends[v_bucket]], v_bucket;
        END IF;
        v_begin := p_ends[v_bucket] + 1;
    END LOOP;
END;
$$;
COMMENT ON FUNCTION poky.get_each IS
'Those of the objects that are there: of bucket number n the keys after p_ends[n - 1] up to p_ends[n]. A bucket that is not there has one row with a null key; p_numbers are of poky.function_number, or null. 55P03 after 0.1 s.';

CREATE OR REPLACE FUNCTION poky.change_each(
    p_are_deletes boolean [], p_buckets text [], p_keys text [], p_values bytea [],
    p_content_types text [], p_modified_at bigint [], p_if_match text [], p_if_none_match text [],
    p_hashes text [], p_attributes jsonb [], p_lock_timeout integer
)
RETURNS SETOF poky.outcome
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
DECLARE
    v_bucket text := '';
    v_id integer;
    v_leaf text;
    v_has_caches boolean;
    v_default_ttl integer;
    v_needs_plan boolean;
    v_outcome poky.outcome;
    v_settled jsonb;
    v_settling record;
BEGIN
    IF p_lock_timeout IS NOT NULL THEN
        -- An object that is locked holds up all: the caller makes each change alone then.
        PERFORM set_config('lock_timeout', p_lock_timeout::text, true);
    END IF;
    FOR v_ordinal IN 1 .. cardinality(p_keys) LOOP
        IF v_bucket <> p_buckets[v_ordinal] OR poky._is_key(p_keys[v_ordinal]) IS NOT TRUE THEN
            v_bucket := p_buckets[v_ordinal];
            SELECT b.id, b.leaf, EXISTS (SELECT FROM poky.cache_node), b.default_ttl
            INTO v_id, v_leaf, v_has_caches, v_default_ttl
            FROM poky.bucket AS b WHERE b.name = v_bucket;
            IF (v_id IS NULL AND poky._is_flat())
                OR poky._is_key(p_keys[v_ordinal]) IS NOT TRUE
            THEN
                SELECT b.id, b.leaf, EXISTS (SELECT FROM poky.cache_node)
                INTO v_id, v_leaf, v_has_caches
                FROM poky._bucket_for_writing(v_bucket, ARRAY[p_keys[v_ordinal]]) AS b;
            END IF;
        END IF;
        IF v_id IS NULL THEN
            -- Caches may not have heard of its drop.
            v_outcome := (
                NULL,
                CASE WHEN poky._is_elsewhere(v_bucket) THEN 'elsewhere' ELSE 'no bucket' END,
                NULL, NULL, NULL,
                CASE WHEN EXISTS (SELECT FROM poky.cache_node) THEN 0 END, NULL
            )::poky.outcome;
        ELSE
            v_needs_plan := v_leaf IS NOT NULL
                AND (p_are_deletes[v_ordinal] OR p_if_match[v_ordinal] IS NOT NULL);
            IF v_needs_plan THEN
                PERFORM poky._plan_for_one_bucket(v_leaf);
            END IF;
            IF p_are_deletes[v_ordinal] THEN
                v_outcome := poky._delete(
                    v_id, v_bucket, v_has_caches, p_keys[v_ordinal], p_if_match[v_ordinal],
                    p_if_none_match[v_ordinal], p_modified_at[v_ordinal], false
                );
                IF v_outcome.modified_at > extract(epoch FROM clock_timestamp()) THEN
                    v_settled := coalesce(v_settled, '{}') || jsonb_build_object(
                        v_id, greatest((v_settled ->> v_id::text)::bigint, v_outcome.modified_at)
                    );
                END IF;
            ELSE
                v_outcome := poky._put(
                    v_id, v_bucket, v_has_caches, p_keys[v_ordinal], p_values[v_ordinal],
                    p_content_types[v_ordinal], p_modified_at[v_ordinal], p_if_match[v_ordinal],
                    p_if_none_match[v_ordinal], p_hashes[v_ordinal],
                    CASE
                        WHEN v_default_ttl IS NULL THEN p_attributes[v_ordinal]
                        ELSE poky._with_ttl(p_attributes[v_ordinal], v_default_ttl)
                    END
                );
            END IF;
            IF v_needs_plan THEN
                PERFORM set_config('plan_cache_mode', 'force_generic_plan', true);
            END IF;
        END IF;
        v_outcome.ordinal := v_ordinal;
        RETURN NEXT v_outcome;
    END LOOP;
    -- Once no other object will be locked, buckets in the order of their numbers.
    IF v_settled IS NOT NULL THEN
        FOR v_settling IN
            SELECT s.key::integer AS id, s.value::bigint AS latest
            FROM jsonb_each_text(v_settled) AS s ORDER BY 1
        LOOP
            PERFORM poky._settle_later(v_settling.id, v_settling.latest);
        END LOOP;
    END IF;
END;
$$;
COMMENT ON FUNCTION poky.change_each IS
'Put or delete single objects of any buckets in one transaction, in the order given, which has to be that of buckets and keys. One outcome each; no bucket where there is none, elsewhere where another database has it. outbox_id 0: nothing changed, but there are caches, which may not have heard of what the outcome tells. 55P03 after p_lock_timeout milliseconds; null: as the session has it. PK400.';
