-- Objects, one at a time.

-- Not in SQL: PostgreSQL would inline it into every write and prepare it each time, used or not.
CREATE OR REPLACE FUNCTION poky._matches(
    p_condition text, p_revision bigint, p_hash text, p_modified_at bigint
)
RETURNS boolean
LANGUAGE plpgsql IMMUTABLE
AS $$
BEGIN
    RETURN p_condition = '*'
        OR p_revision || '-' || p_hash = ANY (string_to_array(p_condition, ','))
        OR '@' || p_modified_at = ANY (string_to_array(p_condition, ','));
END;
$$;
COMMENT ON FUNCTION poky._matches IS
'Whether an object is among those that a condition names (RFC 9110 13.1.1, and the seed''s dates).';

CREATE OR REPLACE FUNCTION poky._announce(p_bucket text, p_key text, p_revision bigint)
RETURNS bigint
LANGUAGE plpgsql
AS $$
DECLARE
    v_id bigint;
BEGIN
    INSERT INTO poky._outbox (bucket, key, revision) VALUES (p_bucket, p_key, p_revision)
    RETURNING id INTO v_id;
    RETURN v_id;
END;
$$;
COMMENT ON FUNCTION poky._announce IS
'Record, in the change''s own transaction, that caches must hear of it; for when there are any.';

CREATE OR REPLACE FUNCTION poky._settle_later(p_id integer, p_modified_at bigint) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    IF p_modified_at > extract(epoch FROM clock_timestamp()) THEN
        UPDATE poky.bucket SET unsettled_until = p_modified_at
        WHERE id = p_id AND unsettled_until < p_modified_at;
    END IF;
END;
$$;
COMMENT ON FUNCTION poky._settle_later IS
'Keep the date of a deleted object if it is in the future. It locks the bucket''s row, and has to be the last that a transaction locks: objects by key, then buckets by id.';

CREATE OR REPLACE FUNCTION poky.get(p_bucket text, p_key text) RETURNS SETOF poky.object
LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 1
SET search_path = poky, pg_temp
AS $$
BEGIN
    RETURN QUERY SELECT o.* FROM poky.get_many(p_bucket, ARRAY[p_key]) AS o;
END;
$$;
COMMENT ON FUNCTION poky.get IS
'The object, or no row. PK404: no such bucket.';

CREATE OR REPLACE FUNCTION poky._draw_anew(p_id integer, p_key text) RETURNS bigint
LANGUAGE plpgsql
SET plan_cache_mode = force_custom_plan  -- one for all buckets would lock them all
AS $$
DECLARE
    v_revision bigint;
BEGIN
    UPDATE poky._object SET revision = nextval('poky.revision')
    WHERE bucket_id = p_id AND key = p_key
    RETURNING revision INTO v_revision;
    RETURN v_revision;
END;
$$;
COMMENT ON FUNCTION poky._draw_anew IS
'Another revision for an object that this transaction has just inserted.';

CREATE OR REPLACE FUNCTION poky._plan_for_one_bucket(p_leaf text) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    IF p_leaf IS NOT NULL THEN
        PERFORM set_config('plan_cache_mode', 'force_custom_plan', true);
    END IF;
END;
$$;
COMMENT ON FUNCTION poky._plan_for_one_bucket IS
'To be called before poky._update and poky._delete: their generic plan would lock all partitions. It lasts until the end of the transaction.';

CREATE OR REPLACE FUNCTION poky._put(
    p_id integer, p_bucket text, p_has_caches boolean,
    p_key text, p_value bytea, p_content_type text,
    p_modified_at bigint, p_if_match text, p_if_none_match text, p_hash text, p_attributes jsonb
)
RETURNS poky.outcome
LANGUAGE plpgsql
AS $$
DECLARE
    v_drawn bigint;
    v_now bigint := floor(date_part('epoch', clock_timestamp()));
    v_hash text := coalesce(p_hash, encode(substr(sha256(p_value), 1, 4), 'hex'));
    v_outcome text := 'updated';
    v_revision bigint;
    v_modified_at bigint;
BEGIN
    IF p_if_match IS NOT NULL THEN
        RETURN poky._update(
            p_id, p_bucket, p_has_caches, p_key, p_value, p_content_type, p_modified_at,
            p_if_match, p_if_none_match, v_hash, p_attributes
        );
    END IF;
    v_drawn := nextval('poky.revision');
    -- nextval again under the row's lock: excluded.revision was drawn before it and can be older.
    INSERT INTO poky._object AS o (
        bucket_id, key, revision, hash, modified_at, written_at, created_at, content_type, value,
        content_encoding
    ) VALUES (
        p_id, p_key, v_drawn, v_hash, coalesce(p_modified_at, v_now), v_now, v_now,
        p_content_type, p_value, p_attributes ->> 'content_encoding'
    )
    ON CONFLICT (bucket_id, key) DO UPDATE SET
        revision = nextval('poky.revision'),
        hash = excluded.hash,
        modified_at = coalesce(p_modified_at, o.modified_at),
        written_at = excluded.written_at,
        content_type = excluded.content_type,
        content_encoding = excluded.content_encoding,
        value = excluded.value
    -- >= and not >: dates have whole seconds, and the last writer within one second wins.
    WHERE (p_modified_at IS NULL OR p_modified_at >= o.modified_at)
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
    IF v_revision = v_drawn THEN
        v_outcome := 'inserted';
        -- The revision was drawn before the key was locked. A later one may have been used for this
        -- key meanwhile, by an insert and a delete: then draw again, now that the key is locked.
        IF (SELECT s.last_value FROM poky.revision AS s) <> v_drawn THEN
            v_revision := poky._draw_anew(p_id, p_key);
        END IF;
    END IF;
    RETURN (
        NULL, v_outcome, v_revision, v_hash, v_modified_at,
        CASE WHEN p_has_caches THEN poky._announce(p_bucket, p_key, v_revision) END
    )::poky.outcome;
END;
$$;
COMMENT ON FUNCTION poky._put (
    integer, text, boolean, text, bytea, text, bigint, text, text, text, jsonb
) IS
'A put into a bucket that was found.';

CREATE OR REPLACE FUNCTION poky.put(
    p_bucket text, p_key text, p_value bytea, p_content_type text,
    p_modified_at bigint, p_if_match text, p_if_none_match text, p_hash text, p_attributes jsonb
)
RETURNS poky.outcome
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
DECLARE
    v_id integer;
    v_leaf text;
    v_has_caches boolean;
BEGIN
    SELECT b.id, b.leaf, EXISTS (SELECT FROM poky.cache_node) INTO v_id, v_leaf, v_has_caches
    FROM poky.bucket AS b WHERE b.name = p_bucket;
    IF v_id IS NULL OR poky._is_key(p_key) IS NOT TRUE THEN
        SELECT b.id, b.leaf, EXISTS (SELECT FROM poky.cache_node) INTO v_id, v_leaf, v_has_caches
        FROM poky._bucket_for_writing(p_bucket, ARRAY[p_key]) AS b;
    END IF;
    IF p_if_match IS NOT NULL THEN
        PERFORM poky._plan_for_one_bucket(v_leaf);
    END IF;
    RETURN poky._put(
        v_id, p_bucket, v_has_caches, p_key, p_value, p_content_type,
        p_modified_at, p_if_match, p_if_none_match, p_hash, p_attributes
    );
END;
$$;
COMMENT ON FUNCTION poky.put (
    text, text, bytea, text, bigint, text, text, text, jsonb
) IS
'Store an object: inserted, updated, or rejected because a condition is false or p_modified_at is older. p_hash: the first 8 hex digits of the value''s SHA-256, from callers that have it. p_attributes: {"content_encoding": "gzip"}, or null. PK400, PK404.';

CREATE OR REPLACE FUNCTION poky.delete(
    p_bucket text, p_key text,
    p_if_match text DEFAULT NULL,
    p_if_none_match text DEFAULT NULL,
    p_unmodified_since bigint DEFAULT NULL
)
RETURNS poky.outcome
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
DECLARE
    v_id integer;
    v_leaf text;
    v_has_caches boolean;
BEGIN
    SELECT b.id, b.leaf, EXISTS (SELECT FROM poky.cache_node) INTO v_id, v_leaf, v_has_caches
    FROM poky.bucket AS b WHERE b.name = p_bucket;
    IF v_id IS NULL OR poky._is_key(p_key) IS NOT TRUE THEN
        SELECT b.id, b.leaf, EXISTS (SELECT FROM poky.cache_node) INTO v_id, v_leaf, v_has_caches
        FROM poky._bucket_for_writing(p_bucket, ARRAY[p_key]) AS b;
    END IF;
    PERFORM poky._plan_for_one_bucket(v_leaf);
    RETURN poky._delete(
        v_id, p_bucket, v_has_caches, p_key, p_if_match, p_if_none_match, p_unmodified_since, true
    );
END;
$$;
COMMENT ON FUNCTION poky.delete IS
'Delete an object: deleted (modified_at: what it had), missing, or rejected because a condition is false. PK400, PK404.';

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
            ' content_encoding FROM poky.' || coalesce(v_leaf, '_object')
            || ' WHERE bucket_id = $1 AND key >= $2 AND key < $2 || chr(127) AND key > $3'
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
            ' CASE WHEN e.level = 0 THEN e.content_encoding END FROM entry AS e LIMIT $5',
            format(
                'SELECT o.key, octet_length(o.value) AS size, o.revision, o.hash, o.modified_at,'
                ' o.content_type, o.content_encoding, strpos(substr(o.key, $4 + 1), ''/'') AS level'
                ' FROM poky.%I AS o WHERE o.bucket_id = $1 AND o.key < $3 || chr(127)',
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
