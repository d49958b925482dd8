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
            ' content_encoding, poky._expiry_second(expires_at) FROM poky.'
            || coalesce(v_leaf, '_object')
            || ' WHERE bucket_id = $1 AND key >= $2 AND key < $2 || chr(127) AND key > $3'
            ' AND (expires_at IS NULL OR expires_at > statement_timestamp())'
            ' ORDER BY key LIMIT $4'
            USING v_id, p_prefix, p_after, p_limit;
    ELSE
        PERFORM poky._require_flat(p_bucket);
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

CREATE OR REPLACE FUNCTION poky._keys_page(
    p_table text, p_id integer, p_prefix text, p_begin text, p_limit integer, p_passed integer
)
RETURNS TABLE (entry poky.listed, next text)
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    v_range text := format(
        ' FROM poky.%I AS o WHERE o.bucket_id = $1 AND o.key >= $3 AND o.key < $2 || chr(127)'
        ' ORDER BY o.key', p_table
    );
    v_count integer;
BEGIN
    RETURN QUERY EXECUTE
        'SELECT (k.key, k.size, k.revision, k.hash, k.modified_at, k.content_type,'
        ' k.content_encoding, poky._expiry_second(k.expires_at))::poky.listed, NULL::text FROM ('
        'SELECT o.key, octet_length(o.value) AS size, o.revision, o.hash, o.modified_at,'
        ' o.content_type, o.content_encoding, o.expires_at' || v_range || ' LIMIT $4 + $5) AS k'
        ' WHERE k.expires_at IS NULL OR k.expires_at > statement_timestamp() LIMIT $4'
        USING p_id, p_prefix, p_begin, p_limit, p_passed;
    GET DIAGNOSTICS v_count = ROW_COUNT;
    -- Less than a page: is that the end, or have too many expired?
    IF v_count < p_limit AND EXISTS (SELECT FROM poky._expiry AS e WHERE e.bucket_id = p_id) THEN
        EXECUTE 'SELECT o.key' || v_range || ' OFFSET $4 + $5 - 1 LIMIT 1' INTO next
        USING p_id, p_prefix, p_begin, p_limit, p_passed;
        IF next IS NOT NULL THEN
            entry := NULL;
            RETURN NEXT;
        END IF;
    END IF;
END;
$$;
COMMENT ON FUNCTION poky._keys_page IS 'A page of poky.list_page with every key by itself.';

CREATE OR REPLACE FUNCTION poky._level_page(
    p_table text, p_id integer, p_prefix text, p_begin text, p_limit integer, p_passed integer
)
RETURNS TABLE (entry poky.listed, next text)
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    v_select text := format(
        'SELECT o.key, octet_length(o.value) AS size, o.revision, o.hash, o.modified_at,'
        ' o.content_type, o.content_encoding, o.expires_at,'
        ' coalesce(o.expires_at <= statement_timestamp(), false) AS is_expired,'
        ' strpos(substr(o.key, $4 + 1), ''/'') AS level, %%s AS number'
        ' FROM poky.%I AS o WHERE o.bucket_id = $1 AND o.key < $2 || chr(127) AND o.key >= %%s'
        ' ORDER BY o.key LIMIT 1', p_table
    );
BEGIN
    -- A probe of the index for each entry, however many keys an entry stands for; and one for each
    -- object that has expired, which says nothing of what is beside it.
    RETURN QUERY EXECUTE format(
        'WITH RECURSIVE entry AS ((%s) UNION ALL'
        ' SELECT o.* FROM entry AS e CROSS JOIN LATERAL (%s) AS o'
        ' WHERE NOT e.is_expired OR e.number < $5 + $6)'
        ' SELECT CASE WHEN e.is_expired THEN NULL WHEN e.level > 0 THEN (left(e.key, $4 + e.level),'
        ' NULL, NULL, NULL, NULL, NULL, NULL, NULL)::poky.listed'
        ' ELSE (e.key, e.size, e.revision, e.hash, e.modified_at, e.content_type,'
        ' e.content_encoding, poky._expiry_second(e.expires_at))::poky.listed END,'
        ' CASE WHEN e.is_expired THEN e.key END'
        ' FROM entry AS e WHERE NOT e.is_expired OR e.number >= $5 + $6 LIMIT $5',
        format(v_select, '1', '$3'),
        format(
            v_select, 'e.number + 1',
            'CASE WHEN e.is_expired THEN e.key || chr(1) ELSE poky._after_level(e.key, $4) END'
        )
    )
        USING p_id, p_prefix, p_begin, length(p_prefix), p_limit, p_passed;
END;
$$;
COMMENT ON FUNCTION poky._level_page IS
'A page of poky.list_page by level; entries for several keys have nulls.';

CREATE OR REPLACE FUNCTION poky.list_page(
    p_bucket text, p_prefix text, p_after text, p_limit integer, p_by_level boolean
)
RETURNS TABLE (
    key text, size integer, revision bigint, hash text, modified_at bigint, content_type text,
    content_encoding text, expires_at bigint, next text
)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
DECLARE
    c_passed CONSTANT integer := 5000;  -- expired objects that a page passes over
    v_id integer;
    v_table text;
    v_begin text := greatest(p_prefix, p_after || chr(1) COLLATE "C");
BEGIN
    SELECT b.id, coalesce(b.leaf, '_object') INTO v_id, v_table
    FROM poky.bucket AS b WHERE b.name = p_bucket;
    IF v_id IS NULL THEN
        PERFORM poky._require_flat(p_bucket);
    ELSIF p_by_level THEN
        IF p_after LIKE '%/' AND starts_with(p_after, p_prefix) AND p_after <> p_prefix THEN
            v_begin := poky._after_level(p_after, length(p_prefix));
        END IF;
        RETURN QUERY SELECT (l.entry).*, l.next FROM poky._level_page(
            v_table, v_id, p_prefix, v_begin, p_limit, c_passed
        ) AS l;
    ELSE
        RETURN QUERY SELECT (l.entry).*, l.next FROM poky._keys_page(
            v_table, v_id, p_prefix, v_begin, p_limit, c_passed
        ) AS l;
    END IF;
END;
$$;
COMMENT ON FUNCTION poky.list_page IS
'Up to p_limit objects whose key starts with p_prefix and sorts after p_after, in key order. p_by_level: keys that have a slash beyond the prefix are one entry, their beginning up to that slash, with nulls; p_after may be one. A row without a key ends a page early, where thousands have expired: it goes on after next. PK404: no such bucket.';
