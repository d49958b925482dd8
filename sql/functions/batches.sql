-- Objects, many at a time.

CREATE OR REPLACE FUNCTION poky.get_many(p_bucket text, p_keys text []) RETURNS SETOF poky.object
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
DECLARE
    v_id integer;
    v_leaf text;
BEGIN
    SELECT id, leaf INTO v_id, v_leaf FROM poky.bucket WHERE name = p_bucket;
    IF v_id IS NOT NULL THEN
        RETURN QUERY EXECUTE format(
            poky._select_objects(), coalesce(v_leaf, '_object'), poky._is_bucket(v_id), '$1'
        )
            USING p_keys;
    ELSIF NOT poky._is_flat() THEN
        PERFORM poky._refuse_bucket(p_bucket);
    END IF;
END;
$$;
COMMENT ON FUNCTION poky.get_many IS
'Those of the objects that are there, each once, in no order. unchanged_since: no older copy can have a later date. PK404: no such bucket.';

CREATE OR REPLACE FUNCTION poky.put_many(
    p_bucket text, p_keys text [], p_values bytea [], p_content_types text [],
    p_modified_at bigint [], p_if_match text [], p_if_none_match text [], p_atomic boolean,
    p_hashes text [], p_attributes jsonb []
)
RETURNS SETOF poky.outcome
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
DECLARE
    v_bucket poky.bucket := poky._bucket_for_writing(p_bucket, p_keys);
    v_has_caches boolean := EXISTS (SELECT FROM poky.cache_node);
    v_outcome poky.outcome;
    v_outcomes poky.outcome [] := '{}';
    v_ordinal integer;
BEGIN
    IF array_remove(p_if_match, NULL) <> '{}' THEN
        PERFORM poky._plan_for_one_bucket(v_bucket.leaf);
    END IF;
    BEGIN
        -- In key order, so that crossing batches cannot deadlock.
        FOR v_ordinal IN
            SELECT k.ordinal FROM unnest(p_keys) WITH ORDINALITY AS k (key, ordinal)
            ORDER BY k.key COLLATE "C", k.ordinal
        LOOP
            v_outcome := poky._put(
                v_bucket.id, p_bucket, v_has_caches, p_keys[v_ordinal], p_values[v_ordinal],
                p_content_types[v_ordinal], p_modified_at[v_ordinal], p_if_match[v_ordinal],
                p_if_none_match[v_ordinal], p_hashes[v_ordinal],
                CASE
                    WHEN v_bucket.default_ttl IS NULL THEN p_attributes[v_ordinal]
                    ELSE poky._with_ttl(p_attributes[v_ordinal], v_bucket.default_ttl)
                END
            );
            v_outcome.ordinal := v_ordinal;
            v_outcomes[v_ordinal] := v_outcome;
        END LOOP;
        IF p_atomic AND 'rejected' = ANY (SELECT o.outcome FROM unnest(v_outcomes) AS o) THEN
            RAISE EXCEPTION USING ERRCODE = 'PK412';
        END IF;
    EXCEPTION WHEN SQLSTATE 'PK412' THEN
        -- Everything above is undone; the variable is not, and says what stood in the way.
        SELECT array_agg(
            (o.ordinal, o.outcome, NULL, NULL, NULL, NULL, NULL)::poky.outcome ORDER BY o.ordinal
        )
        INTO v_outcomes FROM unnest(v_outcomes) AS o;
    END;
    RETURN QUERY SELECT * FROM unnest(v_outcomes);
END;
$$;
COMMENT ON FUNCTION poky.put_many (
    text, text [], bytea [], text [], bigint [], text [], text [], boolean, text [], jsonb []
) IS
'Store objects, one outcome each by ordinal, in one transaction. Atomic: any rejected means nothing was written, and no outcome has a revision. PK400, PK404.';

CREATE OR REPLACE FUNCTION poky.delete_many(
    p_bucket text, p_keys text [],
    p_if_match text [], p_if_none_match text [], p_unmodified_since bigint [], p_atomic boolean
)
RETURNS SETOF poky.outcome
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
DECLARE
    v_bucket poky.bucket := poky._bucket_for_writing(p_bucket, p_keys);
    v_has_caches boolean := EXISTS (SELECT FROM poky.cache_node);
    v_outcome poky.outcome;
    v_outcomes poky.outcome [] := '{}';
    v_ordinal integer;
    v_latest bigint;
BEGIN
    PERFORM poky._plan_for_one_bucket(v_bucket.leaf);
    BEGIN
        FOR v_ordinal IN
            SELECT k.ordinal FROM unnest(p_keys) WITH ORDINALITY AS k (key, ordinal)
            ORDER BY k.key COLLATE "C", k.ordinal
        LOOP
            v_outcome := poky._delete(
                v_bucket.id, p_bucket, v_has_caches, p_keys[v_ordinal],
                p_if_match[v_ordinal], p_if_none_match[v_ordinal], p_unmodified_since[v_ordinal], false
            );
            v_outcome.ordinal := v_ordinal;
            v_outcomes[v_ordinal] := v_outcome;
            v_latest := greatest(v_latest, v_outcome.modified_at);
        END LOOP;
        IF p_atomic AND 'rejected' = ANY (SELECT o.outcome FROM unnest(v_outcomes) AS o) THEN
            RAISE EXCEPTION USING ERRCODE = 'PK412';
        END IF;
        -- Once no other object will be locked: a batch that waits for one must not hold the
        -- bucket's row, which another batch may be waiting for.
        PERFORM poky._settle_later(v_bucket.id, v_latest);
    EXCEPTION WHEN SQLSTATE 'PK412' THEN
        SELECT array_agg(
            (o.ordinal, o.outcome, NULL, NULL, NULL, NULL, NULL)::poky.outcome ORDER BY o.ordinal
        )
        INTO v_outcomes FROM unnest(v_outcomes) AS o;
    END;
    RETURN QUERY SELECT * FROM unnest(v_outcomes);
END;
$$;
COMMENT ON FUNCTION poky.delete_many IS
'Delete objects, one outcome each by ordinal, in one transaction. Atomic as in poky.put_many. PK400, PK404.';
