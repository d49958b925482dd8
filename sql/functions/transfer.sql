-- A bucket out and in, in bulk: poky export, import and verify.

CREATE OR REPLACE FUNCTION poky.export(
    p_bucket text, p_after text, p_limit integer,
    OUT key text, OUT value bytea, OUT content_type text, OUT content_encoding text,
    OUT hash text, OUT revision bigint, OUT modified_at bigint, OUT created_at bigint,
    OUT written_at bigint, OUT expires_at bigint
)
RETURNS SETOF record
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
DECLARE
    v_id integer;
    v_leaf text;
BEGIN
    SELECT b.id, b.leaf INTO v_id, v_leaf FROM poky.bucket AS b WHERE b.name = p_bucket;
    IF v_id IS NOT NULL THEN
        RETURN QUERY EXECUTE format(
            'SELECT o.key, o.value, o.content_type, o.content_encoding, o.hash, o.revision,'
            ' o.modified_at, o.created_at, o.written_at,'
            ' poky._expiry_second(o.expires_at) FROM poky.%I AS o'
            ' WHERE o.bucket_id = $1 AND o.key > $2'
            ' AND (o.expires_at IS NULL OR o.expires_at > statement_timestamp())'
            ' ORDER BY o.key LIMIT $3',
            coalesce(v_leaf, '_object')
        )
            USING v_id, p_after, p_limit;
    ELSE
        PERFORM poky._require_flat(p_bucket);
    END IF;
END;
$$;
COMMENT ON FUNCTION poky.export IS
'Up to p_limit whole objects whose key sorts after p_after, in key order; those that have expired are none. In one transaction, repeatable read, the pages of a bucket are of one moment. PK404: no such bucket.';

CREATE OR REPLACE FUNCTION poky.import_staged(
    p_bucket text, p_on_conflict text, p_dated boolean, p_outbox_id bigint,
    OUT inserted bigint, OUT updated bigint, OUT outbox_id bigint, OUT changed text []
)
RETURNS record
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
DECLARE
    v_bucket poky.bucket := poky._bucket_for_writing(p_bucket, '{}');
    v_table text := coalesce(v_bucket.leaf, '_object');
    v_now bigint := floor(date_part('epoch', clock_timestamp()));
    v_first bigint := (SELECT s.last_value FROM poky.revision AS s);
    v_drawn bigint;
    v_latest bigint;
    v_has_caches boolean := EXISTS (SELECT FROM poky.cache_node);
    v_is_owed boolean;
BEGIN
    IF EXISTS (SELECT FROM poky._expiry AS e WHERE e.bucket_id = v_bucket.id) THEN
        -- The dates of expired objects, which are about to be replaced as if they were not there.
        EXECUTE format(
            'SELECT max(o.modified_at) FROM poky.%I AS o INNER JOIN pg_temp.staged AS s USING (key)'
            ' WHERE o.bucket_id = $1 AND o.expires_at <= clock_timestamp()', v_table
        ) INTO v_latest USING v_bucket.id;
    END IF;
    -- In key order, so that it cannot deadlock with batches. An object that has expired is none.
    EXECUTE format(
        'WITH done AS (INSERT INTO poky.%I AS o ('
        ' bucket_id, key, revision, hash, modified_at, written_at, created_at, content_type,'
        ' value, content_encoding, expires_at'
        ') SELECT $1, s.key, nextval(''poky.revision''), s.hash, coalesce(s.modified_at, $2), $2,'
        ' coalesce(s.created_at, $2), s.content_type, s.value, s.content_encoding,'
        ' to_timestamp(s.expires_at) FROM pg_temp.staged AS s ORDER BY s.key'
        ' ON CONFLICT (bucket_id, key) DO UPDATE SET'
        ' revision = nextval(''poky.revision''), hash = excluded.hash, modified_at = CASE'
        ' WHEN $3 OR o.expires_at <= clock_timestamp() THEN excluded.modified_at'
        ' ELSE o.modified_at END, written_at = excluded.written_at, created_at = CASE'
        ' WHEN o.expires_at <= clock_timestamp() THEN excluded.created_at ELSE o.created_at END,'
        ' content_type = excluded.content_type, value = excluded.value,'
        ' content_encoding = excluded.content_encoding, expires_at = excluded.expires_at'
        ' WHERE o.expires_at <= clock_timestamp() OR %s'
        ' RETURNING xmax = 0 AS inserted, revision, o.key'
        ') SELECT count(*) FILTER (WHERE d.inserted), count(*) FILTER (WHERE NOT d.inserted),'
        ' max(d.revision), %s FROM done AS d',
        v_table,
        CASE
            WHEN p_on_conflict = 'keep' THEN 'false'
            ELSE
                CASE p_on_conflict WHEN 'newer' THEN 'excluded.modified_at >= o.modified_at AND ' ELSE '' END
                || '((o.hash, o.content_type, o.content_encoding, o.expires_at)'
                ' IS DISTINCT FROM (excluded.hash, excluded.content_type,'
                ' excluded.content_encoding, excluded.expires_at)'
                ' OR ($3 AND o.modified_at <> excluded.modified_at) OR o.value <> excluded.value)'
        END,
        -- As many as may be named to caches one by one.
        CASE
            WHEN v_has_caches THEN 'CASE WHEN count(*) <= 10000 THEN array_agg(d.key) END'
            ELSE 'NULL::text[]'
        END
    ) INTO inserted, updated, v_drawn, changed USING v_bucket.id, v_now, p_dated;
    IF inserted > 0 AND (SELECT s.last_value FROM poky.revision AS s) - v_first
        > (SELECT count(*) FROM pg_temp.staged) + updated
    THEN
        -- Others drew revisions meanwhile. What was inserted has one that was drawn before its key
        -- was locked: draw again, as poky._put does. created_at: for the recording of changes.
        EXECUTE format(
            'UPDATE poky.%I AS o SET revision = nextval(''poky.revision''), created_at = o.created_at'
            ' FROM pg_temp.staged AS s'
            ' WHERE o.bucket_id = $1 AND o.key = s.key AND o.revision > $2'
            ' AND o.xmin::text = (pg_current_xact_id()::text::bigint %% 4294967296)::text',
            v_table
        ) USING v_bucket.id, v_first;
    END IF;
    INSERT INTO poky._expiry AS e (due_at, bucket_id, key)
    SELECT to_timestamp(s.expires_at), v_bucket.id, s.key FROM pg_temp.staged AS s
    WHERE s.expires_at IS NOT NULL
    ON CONFLICT (bucket_id, key) DO UPDATE SET due_at = excluded.due_at
    WHERE excluded.due_at < e.due_at;
    -- An import that ended without its purges may have stored the same before.
    v_is_owed := v_has_caches AND EXISTS (
        SELECT FROM poky._outbox AS x
        WHERE x.bucket = p_bucket AND x.key = '' AND x.id IS DISTINCT FROM p_outbox_id
    );
    IF v_is_owed THEN
        changed := NULL;
    END IF;
    IF v_is_owed OR (v_has_caches AND inserted + updated > 0) THEN
        -- One for all of the import, and not for the sweeper while that goes on.
        UPDATE poky._outbox AS x SET created_at = clock_timestamp() + interval '1 minute'
        WHERE x.id = p_outbox_id RETURNING x.id INTO outbox_id;
        IF outbox_id IS NULL THEN
            INSERT INTO poky._outbox AS x (bucket, key, revision, created_at)
            VALUES (
                p_bucket, '', nextval('poky.revision'), clock_timestamp() + interval '1 minute'
            )
            RETURNING x.id INTO outbox_id;
        END IF;
    END IF;
    PERFORM poky._settle_later(v_bucket.id, v_latest);
END;
$$;
COMMENT ON FUNCTION poky.import_staged IS
'Store what the session has in its temporary table staged, each key once. p_on_conflict: keep, replace, or newer, which keeps objects with a later modified_at; p_dated: whether the rows have one. What is the same already stays. p_outbox_id: of the same import so far; the one of now, or null where no cache must hear of it; changed: the keys of which it must, or null where they are more than 10,000, or where caches have not heard of an import before. PK400, PK404.';
