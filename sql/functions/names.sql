-- What may be done: the whole interface, applied again at every migrate.
-- Answers are rows; refusals are errors whose SQLSTATE is PK and the HTTP status.
-- Times are whole seconds since 1970. A condition is null (none), '*', or a comma-separated list of
-- entity tags (revision-hash) and dates (@seconds). Private functions start with an underscore; they
-- run under the search_path that the interface has set: to set it again would cost 5 us a call.

CREATE OR REPLACE FUNCTION poky._is_flat() RETURNS boolean
LANGUAGE sql STABLE
AS $$
    SELECT c.relkind = 'r' FROM pg_catalog.pg_class AS c WHERE c.oid = 'poky._object'::regclass
$$;
COMMENT ON FUNCTION poky._is_flat IS 'Whether all buckets share one table.';

CREATE OR REPLACE FUNCTION poky._is_elsewhere(p_bucket text) RETURNS boolean
LANGUAGE sql STABLE
AS $$
    SELECT
        EXISTS (SELECT FROM poky.placement AS e WHERE e.name = p_bucket AND e.settled)
        OR EXISTS (SELECT FROM poky.shard AS s WHERE s.number > 0)
$$;
COMMENT ON FUNCTION poky._is_elsewhere IS
'Whether a bucket without a row is, or may be, in another database: only control knows all.';

CREATE OR REPLACE FUNCTION poky._refuse_elsewhere(p_bucket text) RETURNS void
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RAISE EXCEPTION USING
        ERRCODE = 'PK421',
        HINT = 'bucket_elsewhere',
        MESSAGE = format('The bucket %s is not in this database: ask control where it is.', p_bucket);
END;
$$;
COMMENT ON FUNCTION poky._refuse_elsewhere IS 'PK421: another database has this bucket.';

CREATE OR REPLACE FUNCTION poky._refuse_bucket(p_bucket text) RETURNS void
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    IF poky._is_elsewhere(p_bucket) THEN
        PERFORM poky._refuse_elsewhere(p_bucket);
    END IF;
    RAISE EXCEPTION USING
        ERRCODE = 'PK404',
        HINT = 'bucket_not_found',
        MESSAGE = format('There is no bucket named %s.', p_bucket);
END;
$$;
COMMENT ON FUNCTION poky._refuse_bucket IS
'For a bucket without a row. PK404: there is none; PK421: another database knows it.';

CREATE OR REPLACE FUNCTION poky._is_key(p_key text) RETURNS boolean
LANGUAGE sql IMMUTABLE
AS $$
    SELECT p_key ~ '^[A-Za-z0-9_.,~:@=+/-]+$' AND length(p_key) <= 1024
        AND p_key NOT IN ('.', '..')
        AND (strpos(p_key, '/') = 0 OR '/' || p_key || '/' !~ '/\.{0,2}/')
$$;
COMMENT ON FUNCTION poky._is_key IS 'Whether a text may be a key; null for null.';

CREATE OR REPLACE FUNCTION poky._is_name(p_name text) RETURNS boolean
LANGUAGE sql IMMUTABLE
AS $$
    SELECT p_name ~ '^[A-Za-z0-9_.,-]+$' AND length(p_name) <= 256 AND p_name NOT IN ('.', '..')
$$;
COMMENT ON FUNCTION poky._is_name IS
'Whether a text may name a bucket; null for null. The table poky.bucket also admits . and .., which 0.1.0 let through.';

CREATE OR REPLACE FUNCTION poky._check_names(p_bucket text, p_keys text []) RETURNS void
LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
    v_key text;
BEGIN
    IF poky._is_name(p_bucket) IS NOT TRUE THEN
        RAISE EXCEPTION USING
            ERRCODE = 'PK400',
            HINT = 'bad_bucket_name',
            MESSAGE = 'A bucket''s name is 1 to 256 characters of A-Z a-z 0-9 _ . , -, '
                'but not . or ..';
    END IF;
    FOREACH v_key IN ARRAY p_keys LOOP
        IF poky._is_key(v_key) IS NOT TRUE THEN
            RAISE EXCEPTION USING
                ERRCODE = 'PK400',
                HINT = 'bad_key',
                MESSAGE = 'A key is 1 to 1024 characters of A-Z a-z 0-9 _ . , ~ : @ = + - /, '
                    'with no slash at either end, no two in a row, and neither . nor .. between them';
        END IF;
    END LOOP;
END;
$$;
COMMENT ON FUNCTION poky._check_names IS 'PK400 unless the bucket''s name and all keys are legal.';

CREATE OR REPLACE FUNCTION poky._require_flat(p_bucket text) RETURNS void
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    IF NOT poky._is_flat() THEN
        PERFORM poky._refuse_bucket(p_bucket);
    END IF;
    PERFORM poky._check_names(p_bucket, '{}');
END;
$$;
COMMENT ON FUNCTION poky._require_flat IS
'For a bucket without a row: in the flat schema it is there, and empty, if it has a legal name. PK400, PK404.';

CREATE OR REPLACE FUNCTION poky._bucket_for_writing(p_bucket text, p_keys text [])
RETURNS poky.bucket
LANGUAGE plpgsql
AS $$
DECLARE
    v_bucket poky.bucket;
BEGIN
    PERFORM poky._check_names(p_bucket, p_keys);
    SELECT * INTO v_bucket FROM poky.bucket WHERE name = p_bucket;
    IF v_bucket.id IS NULL THEN
        IF NOT poky._is_flat() THEN
            PERFORM poky._refuse_bucket(p_bucket);
        END IF;
        INSERT INTO poky.bucket (name, declared) VALUES (p_bucket, false)
        ON CONFLICT DO NOTHING;
        SELECT * INTO STRICT v_bucket FROM poky.bucket WHERE name = p_bucket;
    END IF;
    RETURN v_bucket;
END;
$$;
COMMENT ON FUNCTION poky._bucket_for_writing IS
'The bucket''s registry row; in the flat schema it is made when missing. PK400, PK404.';
