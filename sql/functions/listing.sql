-- Pages of a bucket's objects.

CREATE OR REPLACE FUNCTION poky.list(
    p_bucket text, p_prefix text DEFAULT '', p_after text DEFAULT '', p_limit integer DEFAULT 100
)
RETURNS SETOF poky.listed
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
DECLARE
    v_id integer;
    v_leaf text;
BEGIN
    SELECT id, leaf INTO v_id, v_leaf FROM poky.bucket WHERE name = p_bucket;
    IF v_id IS NOT NULL THEN
        -- chr(127) sorts after every character of a key.
        RETURN QUERY EXECUTE
            'SELECT key, octet_length(value), revision, hash, modified_at, content_type,'
            ' content_encoding, ceil(extract(epoch FROM expires_at))::bigint FROM poky.'
            || coalesce(v_leaf, '_object')
            || ' WHERE bucket_id = $1 AND key >= $2 AND key < $2 || chr(127) AND key > $3'
            ' AND (expires_at IS NULL OR expires_at > statement_timestamp())'
            ' ORDER BY key LIMIT $4'
            USING v_id, p_prefix, p_after, p_limit;
    ELSIF NOT poky._is_flat() THEN
        PERFORM poky._refuse_bucket(p_bucket);
    END IF;
END;
$$;
COMMENT ON FUNCTION poky.list IS
'Up to p_limit objects whose key starts with p_prefix and sorts after p_after, in key order. PK404: no such bucket.';

CREATE OR REPLACE FUNCTION poky._after_level(p_key text, p_length integer) RETURNS text
LANGUAGE sql IMMUTABLE
AS $$
    -- 0 follows the slash, and every character of a key follows chr(1).
    SELECT CASE strpos(substr(p_key, p_length + 1), '/')
        WHEN 0 THEN p_key || chr(1)
        ELSE left(p_key, p_length + strpos(substr(p_key, p_length + 1), '/') - 1) || '0'
    END
$$;
COMMENT ON FUNCTION poky._after_level IS
'What the entry after that of this key sorts at or after, on the level of a prefix of that length.';

CREATE OR REPLACE FUNCTION poky.list_level(
    p_bucket text, p_prefix text, p_after text, p_limit integer
)
RETURNS SETOF poky.listed
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
DECLARE
    v_id integer;
    v_leaf text;
    v_begin text := greatest(p_prefix, p_after || chr(1) COLLATE "C");
    v_length integer := length(p_prefix);
BEGIN
    IF starts_with(p_after, p_prefix) AND strpos(substr(p_after, v_length + 1), '/') > 0 THEN
        v_begin := poky._after_level(p_after, v_length);
    END IF;
    SELECT id, leaf INTO v_id, v_leaf FROM poky.bucket WHERE name = p_bucket;
    IF v_id IS NOT NULL THEN
        -- A probe of the index for each entry, however many keys an entry stands for.
        RETURN QUERY EXECUTE format(
            'WITH RECURSIVE entry AS ((%1$s AND o.key >= $2 ORDER BY o.key LIMIT 1) UNION ALL'
            ' SELECT o.* FROM entry AS e CROSS JOIN LATERAL (%1$s'
            ' AND o.key >= poky._after_level(e.key, $4) ORDER BY o.key LIMIT 1) AS o)'
            ' SELECT CASE WHEN e.level > 0 THEN left(e.key, $4 + e.level) ELSE e.key END,'
            ' CASE WHEN e.level = 0 THEN e.size END, CASE WHEN e.level = 0 THEN e.revision END,'
            ' CASE WHEN e.level = 0 THEN e.hash END, CASE WHEN e.level = 0 THEN e.modified_at END,'
            ' CASE WHEN e.level = 0 THEN e.content_type END,'
            ' CASE WHEN e.level = 0 THEN e.content_encoding END,'
            ' CASE WHEN e.level = 0 THEN e.expires_at END FROM entry AS e LIMIT $5',
            format(
                'SELECT o.key, octet_length(o.value) AS size, o.revision, o.hash, o.modified_at,'
                ' o.content_type, o.content_encoding,'
                ' ceil(extract(epoch FROM o.expires_at))::bigint AS expires_at,'
                ' strpos(substr(o.key, $4 + 1), ''/'') AS level'
                ' FROM poky.%I AS o WHERE o.bucket_id = $1 AND o.key < $3 || chr(127)'
                ' AND (o.expires_at IS NULL OR o.expires_at > statement_timestamp())',
                coalesce(v_leaf, '_object')
            )
        )
            USING v_id, v_begin, p_prefix, v_length, p_limit;
    ELSIF NOT poky._is_flat() THEN
        PERFORM poky._refuse_bucket(p_bucket);
    END IF;
END;
$$;
COMMENT ON FUNCTION poky.list_level IS
'As poky.list, but keys that have a slash beyond the prefix are one entry, their beginning up to that slash, with nulls. Entries sort after p_after. PK404: no such bucket.';
