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
DECLARE
    v_object poky.object;
BEGIN
    FOR v_object IN SELECT o.* FROM poky.get_many(p_bucket, ARRAY[p_key]) AS o LOOP
        -- Release 0.1.0 reads by this function, and does not tell a cache how long to keep it.
        IF v_object.expires_at IS NOT NULL
            AND current_setting('application_name') = 'poky'
            AND EXISTS (SELECT FROM poky.cache_node)
        THEN
            RAISE EXCEPTION USING
                ERRCODE = 'PK503',
                HINT = 'database_failed',
                MESSAGE = 'The object expires, and this instance is of a release that would let a'
                    ' cache keep it for longer. Deploy the later one here, too.';
        END IF;
        RETURN NEXT v_object;
    END LOOP;
END;
$$;
COMMENT ON FUNCTION poky.get IS
'The object, or no row. PK404: no such bucket. PK503: it expires, and an instance of release 0.1.0 asks, beside caches.';

CREATE OR REPLACE FUNCTION poky.get_part(
    p_bucket text, p_key text, p_revision bigint, p_begin integer, p_length integer
)
RETURNS bytea
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
DECLARE
    v_id integer;
    v_leaf text;
    v_part bytea;
BEGIN
    SELECT id, leaf INTO v_id, v_leaf FROM poky.bucket WHERE name = p_bucket;
    EXECUTE format(
        -- PostgreSQL fetches only those pieces of the value that these bytes are in.
        'SELECT substring(o.value FROM $4 + 1 FOR $5) FROM poky.%I AS o'
        ' WHERE o.bucket_id = $1 AND o.key = $2 AND o.revision = $3'
        ' AND (o.expires_at IS NULL OR o.expires_at > statement_timestamp())',
        coalesce(v_leaf, '_object')
    ) INTO v_part USING v_id, p_key, p_revision, p_begin, p_length;
    RETURN v_part;
END;
$$;
COMMENT ON FUNCTION poky.get_part IS
'Bytes of an object''s value: p_length from p_begin, counted from 0; null unless it is there and has this revision.';

CREATE OR REPLACE FUNCTION poky._draw_anew(p_id integer, p_key text) RETURNS bigint
LANGUAGE plpgsql
SET plan_cache_mode = force_custom_plan  -- one for all buckets would lock them all
AS $$
DECLARE
    v_revision bigint;
BEGIN
    -- created_at: for poky._record_redrawn.
    UPDATE poky._object SET revision = nextval('poky.revision'), created_at = created_at
    WHERE bucket_id = p_id AND key = p_key
    RETURNING revision INTO v_revision;
    RETURN v_revision;
END;
$$;
COMMENT ON FUNCTION poky._draw_anew IS
'Another revision for an object that this transaction has just inserted.';

CREATE OR REPLACE FUNCTION poky._revive(
    p_id integer, p_key text, p_modified_at bigint, p_now bigint
)
RETURNS bigint
LANGUAGE plpgsql
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    v_revision bigint;
BEGIN
    UPDATE poky._object
    SET revision = nextval('poky.revision'), modified_at = p_modified_at, created_at = p_now
    WHERE bucket_id = p_id AND key = p_key
    RETURNING revision INTO v_revision;
    RETURN v_revision;
END;
$$;
COMMENT ON FUNCTION poky._revive IS
'The revision of an object that this transaction has put in the place of an expired one: it is as new.';

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
    v_expires_at timestamptz;
BEGIN
    IF p_if_match IS NOT NULL THEN
        RETURN poky._update(
            p_id, p_bucket, p_has_caches, p_key, p_value, p_content_type, p_modified_at,
            p_if_match, p_if_none_match, v_hash, p_attributes
        );
    END IF;
    IF p_attributes IS NOT NULL THEN
        v_expires_at := poky._expires_at(p_attributes);
    END IF;
    v_drawn := nextval('poky.revision');
    -- nextval again under the row's lock: excluded.revision was drawn before it and can be older.
    INSERT INTO poky._object AS o (
        bucket_id, key, revision, hash, modified_at, written_at, created_at, content_type, value,
        content_encoding, expires_at
    ) VALUES (
        p_id, p_key, v_drawn, v_hash, coalesce(p_modified_at, v_now), v_now, v_now,
        p_content_type, p_value, p_attributes ->> 'content_encoding', v_expires_at
    )
    ON CONFLICT (bucket_id, key) DO UPDATE SET
        -- Evaluated under the row's lock, and so is the clock. 0: the object has expired (below).
        revision = CASE
            WHEN o.expires_at <= clock_timestamp() THEN 0 ELSE nextval('poky.revision')
        END,
        hash = excluded.hash,
        modified_at = CASE
            WHEN o.expires_at <= clock_timestamp() THEN o.modified_at
            ELSE coalesce(p_modified_at, o.modified_at)
        END,
        written_at = excluded.written_at,
        content_type = excluded.content_type,
        content_encoding = excluded.content_encoding,
        expires_at = excluded.expires_at,
        value = excluded.value
    -- >= and not >: dates have whole seconds, and the last writer within one second wins.
    WHERE (
            (p_modified_at IS NULL OR p_modified_at >= o.modified_at)
            AND (
                p_if_none_match IS NULL
                OR NOT poky._matches(p_if_none_match, o.revision, o.hash, o.modified_at)
            )
        )
        OR o.expires_at <= clock_timestamp()
    RETURNING o.revision, o.modified_at INTO v_revision, v_modified_at;
    IF v_revision IS NULL THEN
        RETURN (
            NULL, 'rejected', NULL, NULL, NULL, CASE WHEN p_has_caches THEN 0 END, NULL
        )::poky.outcome;
    END IF;
    IF v_revision = 0 THEN
        v_outcome := 'inserted';
        -- Before the old date is forgotten; in the rare case that it is still to come.
        PERFORM poky._settle_later(p_id, v_modified_at);
        v_modified_at := coalesce(p_modified_at, v_now);
        v_revision := poky._revive(p_id, p_key, v_modified_at, v_now);
    ELSIF v_revision = v_drawn THEN
        v_outcome := 'inserted';
        -- The revision was drawn before the key was locked. A later one may have been used for this
        -- key meanwhile, by an insert and a delete: then draw again, now that the key is locked.
        IF (SELECT s.last_value FROM poky.revision AS s) <> v_drawn THEN
            v_revision := poky._draw_anew(p_id, p_key);
        END IF;
    END IF;
    IF v_expires_at IS NOT NULL THEN
        PERFORM poky._queue_expiry(p_id, p_key, v_expires_at);
    END IF;
    RETURN (
        NULL, v_outcome, v_revision, v_hash, v_modified_at,
        CASE WHEN p_has_caches THEN poky._announce(p_bucket, p_key, v_revision) END,
        ceil(extract(epoch FROM v_expires_at))
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
    v_default_ttl integer;
    v_attributes jsonb := p_attributes;
BEGIN
    SELECT b.id, b.leaf, EXISTS (SELECT FROM poky.cache_node), b.default_ttl
    INTO v_id, v_leaf, v_has_caches, v_default_ttl
    FROM poky.bucket AS b WHERE b.name = p_bucket;
    IF v_id IS NULL OR poky._is_key(p_key) IS NOT TRUE THEN
        SELECT b.id, b.leaf, EXISTS (SELECT FROM poky.cache_node) INTO v_id, v_leaf, v_has_caches
        FROM poky._bucket_for_writing(p_bucket, ARRAY[p_key]) AS b;
    END IF;
    IF v_default_ttl IS NOT NULL THEN
        v_attributes := poky._with_ttl(p_attributes, v_default_ttl);
    END IF;
    IF p_if_match IS NOT NULL THEN
        PERFORM poky._plan_for_one_bucket(v_leaf);
    END IF;
    RETURN poky._put(
        v_id, p_bucket, v_has_caches, p_key, p_value, p_content_type,
        p_modified_at, p_if_match, p_if_none_match, p_hash, v_attributes
    );
END;
$$;
COMMENT ON FUNCTION poky.put (
    text, text, bytea, text, bigint, text, text, text, jsonb
) IS
'Store an object: inserted, updated, or rejected because a condition is false or p_modified_at is older. p_hash: the first 8 hex digits of the value''s SHA-256, from callers that have it. p_attributes: {"content_encoding": "gzip", "ttl": 60} or null; ttl in seconds, 0 for never, or expires_at in seconds since 1970. PK400, PK404.';

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
