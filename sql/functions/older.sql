-- What release 0.1.0 calls and this one does not; gone with the next contract migration.

CREATE OR REPLACE FUNCTION poky.put(
    p_bucket text, p_key text, p_value bytea, p_content_type text,
    p_modified_at bigint DEFAULT NULL,
    p_if_match text DEFAULT NULL,
    p_if_none_match text DEFAULT NULL,
    p_hash text DEFAULT NULL
)
RETURNS poky.outcome
LANGUAGE sql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
    SELECT poky.put(
        p_bucket, p_key, p_value, p_content_type, p_modified_at, p_if_match, p_if_none_match,
        p_hash, NULL::jsonb
    )
$$;
COMMENT ON FUNCTION poky.put (text, text, bytea, text, bigint, text, text, text) IS
'poky.put without attributes.';

CREATE OR REPLACE FUNCTION poky.put_many(
    p_bucket text, p_keys text [], p_values bytea [], p_content_types text [],
    p_modified_at bigint [], p_if_match text [], p_if_none_match text [], p_atomic boolean,
    p_hashes text [] DEFAULT NULL
)
RETURNS SETOF poky.outcome
LANGUAGE sql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
    SELECT o.* FROM poky.put_many(
        p_bucket, p_keys, p_values, p_content_types, p_modified_at, p_if_match, p_if_none_match,
        p_atomic, p_hashes, NULL::jsonb []
    ) AS o
$$;
COMMENT ON FUNCTION poky.put_many (
    text, text [], bytea [], text [], bigint [], text [], text [], boolean, text []
) IS
'poky.put_many without attributes.';

CREATE OR REPLACE FUNCTION poky.reader(p_bucket text) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
    SELECT ''
$$;
COMMENT ON FUNCTION poky.reader IS
'Empty: release 0.1.0 then calls poky.get, because the buckets'' functions have other parameters now.';

CREATE OR REPLACE FUNCTION poky.writer(p_bucket text, p_verb text) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
    SELECT ''
$$;
COMMENT ON FUNCTION poky.writer IS
'Empty: release 0.1.0 then calls poky.put or poky.delete.';

-- Called by bodies of 0.1.0 that began before the migration.

CREATE OR REPLACE FUNCTION poky._put(
    p_id integer, p_bucket text, p_has_caches boolean,
    p_key text, p_value bytea, p_content_type text,
    p_modified_at bigint, p_if_match text, p_if_none_match text, p_hash text
)
RETURNS poky.outcome
LANGUAGE sql
AS $$
    SELECT poky._put(
        p_id, p_bucket, p_has_caches, p_key, p_value, p_content_type, p_modified_at,
        p_if_match, p_if_none_match, p_hash, NULL::jsonb
    )
$$;
COMMENT ON FUNCTION poky._put (
    integer, text, boolean, text, bytea, text, bigint, text, text, text
) IS 'poky._put without attributes.';

CREATE OR REPLACE FUNCTION poky._delete(
    p_id integer, p_bucket text, p_has_caches boolean,
    p_key text, p_if_match text, p_if_none_match text, p_unmodified_since bigint
)
RETURNS poky.outcome
LANGUAGE sql
AS $$
    SELECT poky._delete(
        p_id, p_bucket, p_has_caches, p_key, p_if_match, p_if_none_match, p_unmodified_since, true
    )
$$;
COMMENT ON FUNCTION poky._delete (integer, text, boolean, text, text, text, bigint) IS
'poky._delete of a single object.';
