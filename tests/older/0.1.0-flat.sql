BEGIN;
-- Who there is. Applied when one of them is missing, by somebody who may create roles; everything
-- else is done as poky_owner. Passwords are the administrator's business: ALTER ROLE ... PASSWORD.

DO $$
DECLARE
    v_role record;
BEGIN
    FOR v_role IN
        SELECT * FROM (VALUES
            ('poky_owner', 'NOLOGIN'),   -- owns the schema; poky migrate becomes it
            ('poky_service', 'LOGIN'),   -- calls the functions
            ('poky_reader', 'NOLOGIN'),  -- calls those that only read
            ('poky_monitor', 'NOLOGIN')  -- sees how it is, but no object
        ) AS r (name, may_log_in)
        WHERE to_regrole(r.name) IS NULL
    LOOP
        BEGIN
            EXECUTE format('CREATE ROLE %I %s', v_role.name, v_role.may_log_in);
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;  -- roles belong to all databases: another one's migrate was faster
        END;
    END LOOP;
    EXECUTE format('GRANT CREATE ON DATABASE %I TO poky_owner', current_database());
END;
$$;

SET LOCAL ROLE poky_owner;
SET LOCAL search_path = pg_catalog;
-- What is stored: sequence, tables, types. Applied once, to an empty database, as poky_owner,
-- followed by partitioned.sql (the default) or flat.sql, which settle what poky._object is.
-- Whatever changes here needs a file in migrations/ as well; a test proves that both roads meet.

CREATE SCHEMA poky;
COMMENT ON SCHEMA poky IS
'Poky: buckets of objects. Whatever starts with an underscore is private.';

-- CACHE 1: a block of numbers per session would break the order of revisions within a key.
CREATE SEQUENCE poky.revision AS bigint CACHE 1;
COMMENT ON SEQUENCE poky.revision IS
'The server''s clock: one number for every accepted change, never reused.';

CREATE TABLE poky.migration (
    name text COLLATE "C" PRIMARY KEY,
    checksum text NOT NULL,
    release text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE poky.migration IS 'The migrations that this database has, one row per file.';

CREATE TABLE poky.bucket (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text COLLATE "C" NOT NULL UNIQUE
    CHECK (length(name) <= 256 AND name ~ '^[A-Za-z0-9_.,-]+$'),
    leaf text COLLATE "C",
    declared boolean NOT NULL DEFAULT true,
    unsettled_until bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE poky.bucket IS 'The registry of buckets. Tables are named by id, never by name.';
COMMENT ON COLUMN poky.bucket.leaf IS
'The partition that holds this bucket alone; null in the flat schema.';
COMMENT ON COLUMN poky.bucket.declared IS
'False for a bucket that only its objects brought to life, in the flat schema or before the conversion.';
COMMENT ON COLUMN poky.bucket.unsettled_until IS
'The latest modified_at of a deleted object that was still ahead of the server''s clock: up to then a client''s date says nothing certain.';

-- Column order saves padding: eight-byte columns first.
CREATE TABLE poky._object (
    revision bigint NOT NULL,
    modified_at bigint NOT NULL,
    written_at bigint NOT NULL,
    created_at bigint NOT NULL,
    bucket_id integer NOT NULL,
    key text COLLATE "C" NOT NULL,
    hash text COLLATE "C" NOT NULL,
    content_type text COLLATE "C" NOT NULL,
    value bytea NOT NULL,
    PRIMARY KEY (bucket_id, key)
);
COMMENT ON TABLE poky._object IS 'The objects of all buckets.';
COMMENT ON COLUMN poky._object.revision IS 'Drawn from poky.revision at every accepted change.';
COMMENT ON COLUMN poky._object.modified_at IS 'The client''s clock, as the seed has it.';
COMMENT ON COLUMN poky._object.written_at IS 'The server''s clock when this row was written.';
COMMENT ON COLUMN poky._object.hash IS
'The first 8 hex digits of the value''s SHA-256: with the revision, the entity tag.';

-- lz4 where this PostgreSQL has it: ten times faster than pglz at the same job.
DO $$
BEGIN
    ALTER TABLE poky._object ALTER COLUMN value SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported THEN
    NULL;
END;
$$;

CREATE TABLE poky.cache_node (
    name text COLLATE "C" PRIMARY KEY,
    url text NOT NULL,
    generation text NOT NULL,
    lease_seconds double precision NOT NULL DEFAULT 0,
    leased_at timestamptz,
    suspended_at timestamptz,
    drained boolean NOT NULL DEFAULT false,
    held boolean NOT NULL DEFAULT false,
    relapses integer NOT NULL DEFAULT 0,
    reinstated_at timestamptz,
    purged_at timestamptz,
    registered_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE poky.cache_node IS
'The caches that must be told of every change before it is acknowledged.';
COMMENT ON COLUMN poky.cache_node.url IS 'Where the node listens for PURGE.';
COMMENT ON COLUMN poky.cache_node.generation IS
'A random token, never a counter: restore and failover repeat counters.';
COMMENT ON COLUMN poky.cache_node.lease_seconds IS
'The longest lease granted since the node was last without any.';
COMMENT ON COLUMN poky.cache_node.leased_at IS 'For people: when a lease was last granted.';
COMMENT ON COLUMN poky.cache_node.suspended_at IS
'Since when the node gets no lease; null while it takes part.';
COMMENT ON COLUMN poky.cache_node.drained IS
'True once every lease granted before suspended_at has certainly run out.';
COMMENT ON COLUMN poky.cache_node.held IS
'Suspended by people: the prober leaves it alone until they resume it.';
COMMENT ON COLUMN poky.cache_node.relapses IS
'How often in a row it was suspended soon after being reinstated: the next pause doubles.';
COMMENT ON COLUMN poky.cache_node.purged_at IS
'For people: when it last took part in a confirmed purge, to a few seconds.';

CREATE TABLE poky._outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    bucket text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    revision bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE poky._outbox IS
'Changes that the caches may not have heard of: written with the change, removed after the purge.';

CREATE TYPE poky.object AS (
    key text,
    revision bigint,
    hash text,
    modified_at bigint,
    unchanged_since bigint,
    content_type text,
    value bytea
);
COMMENT ON TYPE poky.object IS 'An object as poky.get gives it.';

CREATE TYPE poky.listed AS (
    key text,
    size integer,
    revision bigint,
    hash text,
    modified_at bigint,
    content_type text
);
COMMENT ON TYPE poky.listed IS 'An object as poky.list gives it: everything but the value.';

CREATE TYPE poky.outcome AS (
    ordinal integer,
    outcome text,
    revision bigint,
    hash text,
    modified_at bigint,
    outbox_id bigint
);
COMMENT ON TYPE poky.outcome IS
'What a write came to: inserted, updated, deleted, missing or rejected; outbox_id is null where no cache must hear of it.';

CREATE TYPE poky.node AS (
    name text,
    url text,
    generation text,
    lease_seconds double precision,
    leased_at bigint,
    suspended_at bigint,
    drained boolean,
    held boolean,
    purged_at bigint
);
COMMENT ON TYPE poky.node IS 'A cache as poky.nodes gives it; the columns are poky.cache_node''s.';

CREATE TYPE poky.change AS (
    id bigint,
    bucket text,
    key text
);
COMMENT ON TYPE poky.change IS
'A change that a cache may not have heard of; an empty key stands for the whole bucket.';

-- The flat schema: one table for all buckets, which need no creation.

-- fillfactor 85: room beside the row keeps updates out of the index (HOT).
ALTER TABLE poky._object SET (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.02);

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

CREATE OR REPLACE FUNCTION poky._refuse_bucket(p_bucket text) RETURNS void
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RAISE EXCEPTION USING
        ERRCODE = 'PK404',
        MESSAGE = format('There is no bucket named %s.', p_bucket);
END;
$$;
COMMENT ON FUNCTION poky._refuse_bucket IS 'PK404: no such bucket.';

CREATE OR REPLACE FUNCTION poky._is_key(p_key text) RETURNS boolean
LANGUAGE sql IMMUTABLE
AS $$
    SELECT p_key ~ '^[A-Za-z0-9_.,~:@=+-]+$' AND length(p_key) <= 1024 AND p_key NOT IN ('.', '..')
$$;
COMMENT ON FUNCTION poky._is_key IS 'Whether this may be a key; null for null.';

CREATE OR REPLACE FUNCTION poky._check_names(p_bucket text, p_keys text []) RETURNS void
LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
    v_key text;
BEGIN
    IF p_bucket IS NULL OR p_bucket !~ '^[A-Za-z0-9_.,-]+$' OR length(p_bucket) > 256 THEN
        RAISE EXCEPTION USING
            ERRCODE = 'PK400',
            MESSAGE = 'A bucket''s name is 1 to 256 characters of A-Z a-z 0-9 _ . , -';
    END IF;
    FOREACH v_key IN ARRAY p_keys LOOP
        IF poky._is_key(v_key) IS NOT TRUE THEN
            RAISE EXCEPTION USING
                ERRCODE = 'PK400',
                MESSAGE = 'A key is 1 to 1024 characters of A-Z a-z 0-9 _ . , ~ : @ = + -, '
                    'but not . or ..';
        END IF;
    END LOOP;
END;
$$;
COMMENT ON FUNCTION poky._check_names IS 'PK400 unless the bucket''s name and all keys are legal.';

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

CREATE OR REPLACE FUNCTION poky.get(p_bucket text, p_key text) RETURNS SETOF poky.object
LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 1
SET search_path = poky, pg_temp
AS $$
DECLARE
    v_id integer;
    v_leaf text;
    v_unsettled bigint;
BEGIN
    SELECT id, leaf, unsettled_until INTO v_id, v_leaf, v_unsettled
    FROM poky.bucket WHERE name = p_bucket;
    IF v_leaf IS NOT NULL THEN
        -- The bucket's own table: a plan through the parent would lock and plan every partition.
        RETURN QUERY EXECUTE
            'SELECT key, revision, hash, modified_at, greatest(written_at, modified_at, $3),'
            ' content_type, value FROM poky.' || v_leaf || ' WHERE bucket_id = $1 AND key = $2'
            USING v_id, p_key, v_unsettled;
    ELSIF v_id IS NOT NULL THEN
        RETURN QUERY SELECT
            o.key, o.revision, o.hash, o.modified_at,
            greatest(o.written_at, o.modified_at, v_unsettled), o.content_type, o.value
        FROM poky._object AS o WHERE o.bucket_id = v_id AND o.key = p_key;
    ELSIF NOT poky._is_flat() THEN
        PERFORM poky._refuse_bucket(p_bucket);
    END IF;
END;
$$;
COMMENT ON FUNCTION poky.get IS
'The object, or no row. unchanged_since: no older copy can be dated later. PK404: no such bucket.';

CREATE OR REPLACE FUNCTION poky._own(
    p_bucket poky.bucket, p_verb text, p_signature text, p_source text
)
RETURNS text
LANGUAGE plpgsql
AS $$
DECLARE
    v_name text := p_verb || '_' || p_bucket.id;
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_catalog.pg_proc AS p
        WHERE p.proname = v_name AND p.pronamespace = 'poky'::regnamespace AND p.prosrc = p_source
    ) THEN
        -- One at a time, and not beside poky.drop_bucket.
        PERFORM FROM poky.bucket WHERE id = p_bucket.id FOR UPDATE;
        IF NOT FOUND THEN
            RETURN NULL;
        END IF;
        EXECUTE format(
            'CREATE OR REPLACE FUNCTION poky.%I%s LANGUAGE plpgsql SECURITY DEFINER'
            ' SET search_path = poky, pg_temp AS %L',
            v_name, p_signature, p_source
        );
        EXECUTE format('REVOKE ALL ON FUNCTION poky.%I FROM public', v_name);
        EXECUTE format('GRANT EXECUTE ON FUNCTION poky.%I TO poky_service', v_name);
        EXECUTE format(
            'COMMENT ON FUNCTION poky.%I IS %L', v_name, 'poky.' || p_verb || ' for one bucket.'
        );
    END IF;
    RETURN v_name;
END;
$$;
COMMENT ON FUNCTION poky._own IS
'Give a bucket a function of its own, unless it has it; its name, or null if the bucket is gone.';

CREATE OR REPLACE FUNCTION poky.reader(p_bucket text) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
DECLARE
    v_bucket poky.bucket;
BEGIN
    SELECT * INTO v_bucket FROM poky.bucket WHERE name = p_bucket;
    IF v_bucket.leaf IS NULL THEN
        RETURN CASE WHEN poky._is_flat() THEN '' END;
    END IF;
    RETURN poky._own(
        v_bucket, 'get', '(p_key text) RETURNS SETOF poky.object STABLE ROWS 1',
        -- poky.bucket comes first, so that it is locked first (migrations/README.md, rule 4).
        format(
            'BEGIN RETURN QUERY SELECT o.key, o.revision, o.hash, o.modified_at,'
            ' greatest(o.written_at, o.modified_at, b.unsettled_until), o.content_type, o.value'
            ' FROM poky.bucket AS b CROSS JOIN poky.%2$I AS o'
            ' WHERE b.id = %1$s AND o.bucket_id = %1$s AND o.key = p_key; END',
            v_bucket.id, v_bucket.leaf
        )
    );
END;
$$;
COMMENT ON FUNCTION poky.reader IS
'The name of a function that is poky.get for this bucket alone, at half the cost: its plan is kept. Made when first asked for, gone with the bucket. Null: no such bucket; empty: the schema is flat.';

CREATE OR REPLACE FUNCTION poky.writer(p_bucket text, p_verb text) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
DECLARE
    v_bucket poky.bucket;
    v_parameters text;
    v_source text;
BEGIN
    SELECT * INTO v_bucket FROM poky.bucket WHERE name = p_bucket;
    IF v_bucket.leaf IS NULL THEN
        RETURN CASE WHEN poky._is_flat() THEN '' END;
    END IF;
    -- poky._put or poky._delete as they stand, but with this bucket's table, id and name.
    SELECT
        substring(pg_get_function_arguments(p.oid) FROM 'p_key .*'),
        regexp_replace(
            regexp_replace(
                replace(p.prosrc, 'poky._object', format('poky.%I', v_bucket.leaf)),
                '\mp_id\M', v_bucket.id::text, 'g'
            ),
            '\mp_bucket\M', quote_literal(p_bucket), 'g'
        )
    INTO STRICT v_parameters, v_source
    FROM pg_catalog.pg_proc AS p
    WHERE p.oid = to_regprocedure(
        CASE p_verb
            WHEN 'put' THEN
                'poky._put(integer,text,boolean,text,bytea,text,bigint,text,text,text)'
            WHEN 'delete' THEN 'poky._delete(integer,text,boolean,text,text,text,bigint)'
        END
    );
    RETURN poky._own(
        v_bucket, p_verb, format('(%s) RETURNS poky.outcome', v_parameters),
        format(
            'DECLARE p_has_caches boolean; BEGIN'
            ' IF poky._is_key(p_key) IS NOT TRUE THEN'
            ' PERFORM poky._check_names(%L, ARRAY[p_key]); END IF;'
            ' SELECT EXISTS (SELECT FROM poky.cache_node) INTO p_has_caches'
            ' FROM poky.bucket AS b WHERE b.id = %s;'
            ' IF NOT FOUND THEN RAISE undefined_table; END IF;'
            '%sEND',
            p_bucket, v_bucket.id, v_source
        )
    );
END;
$$;
COMMENT ON FUNCTION poky.writer IS
'The name of a function that is poky.put or poky.delete for this bucket alone; as poky.reader. Error 42P01 from such a function: the bucket is gone, and nothing was done.';

CREATE OR REPLACE FUNCTION poky.get_many(p_bucket text, p_keys text []) RETURNS SETOF poky.object
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
DECLARE
    v_id integer;
    v_leaf text;
    v_unsettled bigint;
BEGIN
    SELECT id, leaf, unsettled_until INTO v_id, v_leaf, v_unsettled
    FROM poky.bucket WHERE name = p_bucket;
    IF v_id IS NOT NULL THEN
        RETURN QUERY EXECUTE
            'SELECT key, revision, hash, modified_at, greatest(written_at, modified_at, $3),'
            ' content_type, value FROM poky.' || coalesce(v_leaf, '_object')
            || ' WHERE bucket_id = $1 AND key = ANY ($2)'
            USING v_id, p_keys, v_unsettled;
    ELSIF NOT poky._is_flat() THEN
        PERFORM poky._refuse_bucket(p_bucket);
    END IF;
END;
$$;
COMMENT ON FUNCTION poky.get_many IS
'Those of the objects that are there, each once, in no order. PK404: no such bucket.';

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
'To be called before poky._put with p_if_match and before poky._delete: their plan for all partitions would lock them all. Up to the end of the transaction.';

CREATE OR REPLACE FUNCTION poky._put(
    p_id integer, p_bucket text, p_has_caches boolean,
    p_key text, p_value bytea, p_content_type text,
    p_modified_at bigint, p_if_match text, p_if_none_match text, p_hash text
)
RETURNS poky.outcome
LANGUAGE plpgsql
AS $$
DECLARE
    v_drawn bigint := nextval('poky.revision');
    v_now bigint := floor(date_part('epoch', clock_timestamp()));
    v_hash text := coalesce(p_hash, encode(substr(sha256(p_value), 1, 4), 'hex'));
    v_outcome text := 'updated';
    v_revision bigint;
    v_modified_at bigint;
BEGIN
    IF p_if_match IS NULL THEN
        -- nextval again under the row's lock: excluded.revision was drawn before it and can be older.
        INSERT INTO poky._object AS o (
            bucket_id, key, revision, hash, modified_at, written_at, created_at, content_type, value
        ) VALUES (
            p_id, p_key, v_drawn, v_hash, coalesce(p_modified_at, v_now), v_now, v_now,
            p_content_type, p_value
        )
        ON CONFLICT (bucket_id, key) DO UPDATE SET
            revision = nextval('poky.revision'),
            hash = excluded.hash,
            modified_at = coalesce(p_modified_at, o.modified_at),
            written_at = excluded.written_at,
            content_type = excluded.content_type,
            value = excluded.value
        -- >= and not >: dates have whole seconds, and the last writer within one second wins.
        WHERE (p_modified_at IS NULL OR p_modified_at >= o.modified_at)
            AND (
                p_if_none_match IS NULL
                OR NOT poky._matches(p_if_none_match, o.revision, o.hash, o.modified_at)
            )
        RETURNING o.revision, o.modified_at INTO v_revision, v_modified_at;
        IF v_revision = v_drawn THEN
            v_outcome := 'inserted';
            -- The number was drawn before the key was held. Had somebody drawn since, it could have
            -- been for this key, inserted and deleted again: then draw anew, now that it is held.
            IF (SELECT s.last_value FROM poky.revision AS s) <> v_drawn THEN
                v_revision := poky._draw_anew(p_id, p_key);
            END IF;
        END IF;
    ELSE
        -- The number is drawn when the row to be replaced has been seen. If another one takes that
        -- row's place first, PostgreSQL looks again: at the condition, and for a number.
        UPDATE poky._object AS o SET
            revision = nextval('poky.revision'),
            hash = v_hash,
            modified_at = coalesce(p_modified_at, o.modified_at),
            written_at = v_now,
            content_type = p_content_type,
            value = p_value
        WHERE o.bucket_id = p_id AND o.key = p_key
            AND poky._matches(p_if_match, o.revision, o.hash, o.modified_at)
            AND (p_modified_at IS NULL OR p_modified_at >= o.modified_at)
            AND (
                p_if_none_match IS NULL
                OR NOT poky._matches(p_if_none_match, o.revision, o.hash, o.modified_at)
            )
        RETURNING o.revision, o.modified_at INTO v_revision, v_modified_at;
    END IF;
    IF v_revision IS NULL THEN
        RETURN (NULL, 'rejected', NULL, NULL, NULL, NULL)::poky.outcome;
    END IF;
    RETURN (
        NULL, v_outcome, v_revision, v_hash, v_modified_at,
        CASE WHEN p_has_caches THEN poky._announce(p_bucket, p_key, v_revision) END
    )::poky.outcome;
END;
$$;

COMMENT ON FUNCTION poky._put IS
'One write into a known bucket; poky.put, poky.put_many, and as text what poky.writer makes.';

CREATE OR REPLACE FUNCTION poky.put(
    p_bucket text, p_key text, p_value bytea, p_content_type text,
    p_modified_at bigint DEFAULT NULL,
    p_if_match text DEFAULT NULL,
    p_if_none_match text DEFAULT NULL,
    p_hash text DEFAULT NULL
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
        p_modified_at, p_if_match, p_if_none_match, p_hash
    );
END;
$$;
COMMENT ON FUNCTION poky.put IS
'Store an object: inserted, updated, or rejected because a condition is false or p_modified_at is older. p_hash: the first 8 hex digits of the value''s SHA-256, from those who have it. PK400, PK404.';

CREATE OR REPLACE FUNCTION poky.put_many(
    p_bucket text, p_keys text [], p_values bytea [], p_content_types text [],
    p_modified_at bigint [], p_if_match text [], p_if_none_match text [], p_atomic boolean,
    p_hashes text [] DEFAULT NULL
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
                p_if_none_match[v_ordinal], p_hashes[v_ordinal]
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
            (o.ordinal, o.outcome, NULL, NULL, NULL, NULL)::poky.outcome ORDER BY o.ordinal
        )
        INTO v_outcomes FROM unnest(v_outcomes) AS o;
    END;
    RETURN QUERY SELECT * FROM unnest(v_outcomes);
END;
$$;
COMMENT ON FUNCTION poky.put_many IS
'Store objects, one outcome each by ordinal, in one transaction. Atomic: any rejected means nothing was written, and no outcome has a revision. PK400, PK404.';

CREATE OR REPLACE FUNCTION poky._delete(
    p_id integer, p_bucket text, p_has_caches boolean,
    p_key text, p_if_match text, p_if_none_match text, p_unmodified_since bigint
)
RETURNS poky.outcome
LANGUAGE plpgsql
AS $$
DECLARE
    v_modified_at bigint;
    v_outcome text := CASE WHEN p_if_match IS NULL THEN 'missing' ELSE 'rejected' END;
    v_outbox_id bigint;
BEGIN
    IF p_if_none_match IS NOT NULL OR p_unmodified_since IS NOT NULL THEN
        -- Held, so that what is not there can be told from what does not match.
        PERFORM FROM poky._object AS o WHERE o.bucket_id = p_id AND o.key = p_key FOR UPDATE;
        IF NOT FOUND THEN
            RETURN (NULL, v_outcome, NULL, NULL, NULL, NULL)::poky.outcome;
        END IF;
        v_outcome := 'rejected';
    END IF;
    DELETE FROM poky._object AS o
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
        RETURN (NULL, v_outcome, NULL, NULL, NULL, NULL)::poky.outcome;
    END IF;
    IF v_modified_at > extract(epoch FROM clock_timestamp()) THEN
        UPDATE poky.bucket SET unsettled_until = greatest(unsettled_until, v_modified_at)
        WHERE id = p_id;
    END IF;
    IF p_has_caches THEN
        v_outbox_id := poky._announce(p_bucket, p_key, nextval('poky.revision'));
    END IF;
    RETURN (NULL, 'deleted', NULL, NULL, NULL, v_outbox_id)::poky.outcome;
END;
$$;
COMMENT ON FUNCTION poky._delete IS
'One delete from a known bucket; poky.delete, poky.delete_many, and as text what poky.writer makes.';

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
        v_id, p_bucket, v_has_caches, p_key, p_if_match, p_if_none_match, p_unmodified_since
    );
END;
$$;
COMMENT ON FUNCTION poky.delete IS
'Delete an object: deleted, missing, or rejected because a condition is false. PK400, PK404.';

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
BEGIN
    PERFORM poky._plan_for_one_bucket(v_bucket.leaf);
    BEGIN
        FOR v_ordinal IN
            SELECT k.ordinal FROM unnest(p_keys) WITH ORDINALITY AS k (key, ordinal)
            ORDER BY k.key COLLATE "C", k.ordinal
        LOOP
            v_outcome := poky._delete(
                v_bucket.id, p_bucket, v_has_caches, p_keys[v_ordinal],
                p_if_match[v_ordinal], p_if_none_match[v_ordinal], p_unmodified_since[v_ordinal]
            );
            v_outcome.ordinal := v_ordinal;
            v_outcomes[v_ordinal] := v_outcome;
        END LOOP;
        IF p_atomic AND 'rejected' = ANY (SELECT o.outcome FROM unnest(v_outcomes) AS o) THEN
            RAISE EXCEPTION USING ERRCODE = 'PK412';
        END IF;
    EXCEPTION WHEN SQLSTATE 'PK412' THEN
        SELECT array_agg(
            (o.ordinal, o.outcome, NULL, NULL, NULL, NULL)::poky.outcome ORDER BY o.ordinal
        )
        INTO v_outcomes FROM unnest(v_outcomes) AS o;
    END;
    RETURN QUERY SELECT * FROM unnest(v_outcomes);
END;
$$;
COMMENT ON FUNCTION poky.delete_many IS
'Delete objects, one outcome each by ordinal, in one transaction. Atomic as in poky.put_many. PK400, PK404.';

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
            'SELECT key, octet_length(value), revision, hash, modified_at, content_type FROM poky.'
            || coalesce(v_leaf, '_object')
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

CREATE OR REPLACE FUNCTION poky._create_leaf(p_id integer, p_parent text) RETURNS text
LANGUAGE plpgsql
AS $$
DECLARE
    v_leaf text := '_o_' || p_id;
BEGIN
    EXECUTE format('CREATE TABLE poky.%I (LIKE poky.%I INCLUDING ALL)', v_leaf, p_parent);
    EXECUTE format(
        'ALTER TABLE poky.%I SET (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.02)', v_leaf
    );
    -- ATTACH lets readers and writers pass; PARTITION OF would stop them all.
    EXECUTE format(
        'ALTER TABLE poky.%I ATTACH PARTITION poky.%I FOR VALUES IN (%s)', p_parent, v_leaf, p_id
    );
    RETURN v_leaf;
END;
$$;
COMMENT ON FUNCTION poky._create_leaf IS 'Create and attach the partition of one bucket.';

CREATE OR REPLACE FUNCTION poky.ensure_bucket(p_bucket text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
DECLARE
    v_bucket poky.bucket;
BEGIN
    PERFORM poky._check_names(p_bucket, '{}');
    SELECT * INTO v_bucket FROM poky.bucket WHERE name = p_bucket;
    IF v_bucket.declared THEN
        RETURN false;
    END IF;
    INSERT INTO poky.bucket AS b (name) VALUES (p_bucket)
    ON CONFLICT (name) DO UPDATE SET declared = true WHERE NOT b.declared
    RETURNING * INTO v_bucket;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    IF v_bucket.leaf IS NULL AND NOT poky._is_flat() THEN
        UPDATE poky.bucket SET leaf = poky._create_leaf(v_bucket.id, '_object')
        WHERE id = v_bucket.id;
    END IF;
    RETURN true;
END;
$$;
COMMENT ON FUNCTION poky.ensure_bucket IS 'Create a bucket unless it is there; true if created. PK400.';

CREATE OR REPLACE FUNCTION poky.drop_bucket(p_bucket text, p_keys boolean DEFAULT false)
RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
DECLARE
    v_bucket poky.bucket;
    v_has_keys boolean;
    v_function regprocedure;
BEGIN
    SELECT * INTO v_bucket FROM poky.bucket WHERE name = p_bucket FOR UPDATE;
    IF v_bucket.leaf IS NOT NULL THEN
        EXECUTE format('LOCK TABLE poky.%I IN ACCESS EXCLUSIVE MODE', v_bucket.leaf);
    END IF;
    EXECUTE format(
        'SELECT EXISTS (SELECT FROM poky.%I WHERE bucket_id = $1)',
        coalesce(v_bucket.leaf, '_object')
    ) INTO v_has_keys USING v_bucket.id;
    IF v_bucket.id IS NULL OR NOT (v_bucket.declared OR v_has_keys) THEN
        PERFORM poky._refuse_bucket(p_bucket);
    END IF;
    IF v_has_keys AND NOT p_keys THEN
        RAISE EXCEPTION USING
            ERRCODE = 'PK409',
            MESSAGE = format('The bucket %s has keys.', p_bucket);
    END IF;
    IF v_bucket.leaf IS NOT NULL THEN
        EXECUTE format('DROP TABLE poky.%I', v_bucket.leaf);
        FOR v_function IN
            SELECT p.oid FROM pg_catalog.pg_proc AS p
            WHERE p.pronamespace = 'poky'::regnamespace
                AND p.proname IN (
                    'get_' || v_bucket.id, 'put_' || v_bucket.id, 'delete_' || v_bucket.id
                )
        LOOP
            EXECUTE format('DROP FUNCTION %s', v_function);
        END LOOP;
        DELETE FROM poky.bucket WHERE id = v_bucket.id;
    ELSE
        -- The row stays: a writer may have read its id already.
        UPDATE poky.bucket SET declared = false WHERE id = v_bucket.id;
        DELETE FROM poky._object WHERE bucket_id = v_bucket.id;
        v_has_keys := FOUND;
    END IF;
    IF v_has_keys AND EXISTS (SELECT FROM poky.cache_node) THEN
        RETURN poky._announce(p_bucket, '', nextval('poky.revision'));
    END IF;
    RETURN NULL;
END;
$$;
COMMENT ON FUNCTION poky.drop_bucket IS
'Drop a bucket, with its keys only if p_keys; the outbox_id, or null where no cache must hear of it. PK404: no such bucket; PK409: it has keys.';

CREATE OR REPLACE FUNCTION poky.buckets(
    OUT name text, OUT kind text, OUT estimated_rows bigint, OUT bytes bigint
)
RETURNS SETOF record
LANGUAGE plpgsql SECURITY DEFINER  -- volatile: EXPLAIN asks for it
SET search_path = poky, pg_temp
AS $$
DECLARE
    v_bucket poky.bucket;
    v_has_keys boolean;
    v_plan json;
    v_all real;
BEGIN
    FOR v_bucket IN SELECT * FROM poky.bucket AS b ORDER BY b.name LOOP
        IF NOT v_bucket.declared THEN
            EXECUTE format(
                'SELECT EXISTS (SELECT FROM poky.%I WHERE bucket_id = $1)',
                coalesce(v_bucket.leaf, '_object')
            ) INTO v_has_keys USING v_bucket.id;
            CONTINUE WHEN NOT v_has_keys;
        END IF;
        name := v_bucket.name;
        IF v_bucket.leaf IS NOT NULL THEN
            kind := 'partitioned';
            SELECT greatest(c.reltuples, 0), pg_total_relation_size(c.oid)
            INTO estimated_rows, bytes
            FROM pg_catalog.pg_class AS c WHERE c.oid = format('poky.%I', v_bucket.leaf)::regclass;
        ELSE
            kind := 'flat';
            -- The planner's guess: counting would read the whole bucket.
            EXECUTE format(
                'EXPLAIN (FORMAT json) SELECT FROM poky._object WHERE bucket_id = %s', v_bucket.id
            ) INTO v_plan;
            estimated_rows := (v_plan -> 0 -> 'Plan' ->> 'Plan Rows')::bigint;
            SELECT greatest(c.reltuples, 1), pg_total_relation_size(c.oid) INTO v_all, bytes
            FROM pg_catalog.pg_class AS c WHERE c.oid = 'poky._object'::regclass;
            bytes := bytes * least(estimated_rows / v_all, 1);
        END IF;
        RETURN NEXT;
    END LOOP;
END;
$$;
COMMENT ON FUNCTION poky.buckets IS
'All buckets by name, with PostgreSQL''s estimate of rows and the bytes on disk (estimated if flat).';

CREATE OR REPLACE FUNCTION poky.status(OUT kind text, OUT migrations text []) RETURNS record
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
    SELECT
        CASE WHEN poky._is_flat() THEN 'flat' ELSE 'partitioned' END,
        (SELECT array_agg(m.name ORDER BY m.name) FROM poky.migration AS m)
$$;
COMMENT ON FUNCTION poky.status IS 'The schema''s kind and the migrations it has.';

-- The caches (docs/cache.md). A node may use its copies while it holds a lease of its generation;
-- a node that may have missed a purge is suspended, and its copies die with the generation.

CREATE OR REPLACE FUNCTION poky.nodes() RETURNS SETOF poky.node
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
    SELECT
        n.name, n.url, n.generation, n.lease_seconds,
        extract(epoch FROM n.leased_at)::bigint, extract(epoch FROM n.suspended_at)::bigint,
        n.drained, n.held, extract(epoch FROM n.purged_at)::bigint
    FROM poky.cache_node AS n ORDER BY n.name
$$;
COMMENT ON FUNCTION poky.nodes IS
'All caches by name. Whoever changed something asks after the commit, never before.';

CREATE OR REPLACE FUNCTION poky.register_node(p_node text, p_url text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
DECLARE
    v_url text;
BEGIN
    IF p_node IS NULL OR p_node !~ '^[A-Za-z0-9_.-]+$' OR length(p_node) > 256 THEN
        RAISE EXCEPTION USING
            ERRCODE = 'PK400',
            MESSAGE = 'A cache''s name is 1 to 256 characters of A-Z a-z 0-9 _ . -';
    END IF;
    -- Waits for the writers that looked for caches, found none, and have not committed yet:
    -- nobody would tell this node of their changes.
    LOCK TABLE poky.cache_node IN ACCESS EXCLUSIVE MODE;
    SELECT url INTO v_url FROM poky.cache_node WHERE name = p_node;
    IF v_url = p_url THEN
        RETURN false;
    END IF;
    IF v_url IS NULL THEN
        INSERT INTO poky.cache_node (name, url, generation, suspended_at, drained)
        VALUES (p_node, p_url, gen_random_uuid(), clock_timestamp(), true);
    ELSE
        -- Whoever answered at the old address may still hold a lease.
        PERFORM poky.suspend_node(p_node);
        UPDATE poky.cache_node SET url = p_url WHERE name = p_node;
    END IF;
    RETURN true;
END;
$$;
COMMENT ON FUNCTION poky.register_node IS
'Make a cache known, or its new address; it starts suspended. False if nothing changed. PK400.';

CREATE OR REPLACE FUNCTION poky.lease(p_node text, p_seconds double precision) RETURNS text
LANGUAGE sql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
    -- An update, so that it takes its turn with poky.suspend_node.
    UPDATE poky.cache_node
    SET lease_seconds = greatest(lease_seconds, p_seconds), leased_at = clock_timestamp()
    WHERE name = p_node AND suspended_at IS NULL
    RETURNING generation
$$;
COMMENT ON FUNCTION poky.lease IS
'The generation under which a cache may use its copies for p_seconds from when it asked; null is no.';

CREATE OR REPLACE FUNCTION poky.suspend_node(p_node text, p_hold boolean DEFAULT false)
RETURNS SETOF poky.node
LANGUAGE plpgsql SECURITY DEFINER ROWS 1
SET search_path = poky, pg_temp
AS $$
BEGIN
    UPDATE poky.cache_node
    SET
        suspended_at = clock_timestamp(),
        generation = gen_random_uuid(),
        drained = false,
        relapses = CASE
            WHEN reinstated_at > clock_timestamp() - make_interval(secs => 4 * lease_seconds)
                THEN least(relapses + 1, 5)
            ELSE 0
        END
    WHERE name = p_node AND suspended_at IS NULL;
    IF p_hold THEN
        UPDATE poky.cache_node SET held = true WHERE name = p_node;
    END IF;
    RETURN QUERY SELECT * FROM poky.nodes() AS n WHERE n.name = p_node;
END;
$$;
COMMENT ON FUNCTION poky.suspend_node IS
'Grant a cache no more leases, whoever did it first; no row if there is no such cache. Unless it is drained, what it missed is to be acknowledged only when its leases have run out.';

CREATE OR REPLACE FUNCTION poky.drain_node(p_node text, p_generation text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
BEGIN
    UPDATE poky.cache_node SET drained = true
    WHERE name = p_node AND generation = p_generation AND suspended_at IS NOT NULL;
    RETURN FOUND;
END;
$$;
COMMENT ON FUNCTION poky.drain_node IS
'Say that the leases of a suspended cache have run out: for those who waited for it by a clock that is never set.';

CREATE OR REPLACE FUNCTION poky.reinstate_node(p_node text, p_generation text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
BEGIN
    UPDATE poky.cache_node
    SET
        suspended_at = NULL,
        drained = false,
        lease_seconds = 0,
        reinstated_at = clock_timestamp()
    WHERE name = p_node AND generation = p_generation AND drained AND NOT held
        -- A cache that only some instances can reach would make their writers wait again and again.
        AND suspended_at
        <= clock_timestamp() - make_interval(secs => lease_seconds * (2 ^ relapses - 1));
    RETURN FOUND;
END;
$$;
COMMENT ON FUNCTION poky.reinstate_node IS
'Let a cache take part again, unless its pause is not over or people hold it; whether it does now.';

CREATE OR REPLACE FUNCTION poky.resume_node(p_node text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
BEGIN
    UPDATE poky.cache_node SET held = false WHERE name = p_node;
    RETURN FOUND;
END;
$$;
COMMENT ON FUNCTION poky.resume_node IS
'Hold a cache no longer: it is reinstated once it answers. False if there is no such cache.';

CREATE OR REPLACE FUNCTION poky.remove_node(p_node text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
BEGIN
    DELETE FROM poky.cache_node WHERE name = p_node AND drained;
    IF FOUND THEN
        RETURN true;
    END IF;
    IF EXISTS (SELECT FROM poky.cache_node WHERE name = p_node) THEN
        RAISE EXCEPTION USING
            ERRCODE = 'PK409',
            MESSAGE = format('The cache %s may hold a lease: suspend it and wait first.', p_node);
    END IF;
    RETURN false;
END;
$$;
COMMENT ON FUNCTION poky.remove_node IS
'Forget a cache that is suspended and drained. False if there is no such cache; PK409 if it may hold a lease.';

CREATE OR REPLACE FUNCTION poky.renew_generations() RETURNS double precision
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
DECLARE
    v_seconds double precision;
BEGIN
    UPDATE poky.cache_node SET generation = gen_random_uuid() WHERE suspended_at IS NULL;
    SELECT max(lease_seconds) INTO v_seconds FROM poky.cache_node WHERE NOT drained;
    RETURN coalesce(v_seconds, 0);
END;
$$;
COMMENT ON FUNCTION poky.renew_generations IS
'Let every cache forget all it has. The longest lease that may be out: once it has passed, nobody uses an old copy.';

CREATE OR REPLACE FUNCTION poky.unconfirmed(p_seconds double precision, p_limit integer)
RETURNS SETOF poky.change
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
    SELECT o.id, o.bucket, o.key FROM poky._outbox AS o
    WHERE o.created_at <= clock_timestamp() - make_interval(secs => p_seconds)
    ORDER BY o.id LIMIT p_limit
$$;
COMMENT ON FUNCTION poky.unconfirmed IS
'The oldest changes that nobody has confirmed to be purged for so long: their writer died, or is not the service.';

CREATE OR REPLACE FUNCTION poky.confirm(p_ids bigint []) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
BEGIN
    -- Nothing is lost if this is: another purge does no harm.
    PERFORM set_config('synchronous_commit', 'off', true);
    DELETE FROM poky._outbox WHERE id = ANY (p_ids);
    UPDATE poky.cache_node SET purged_at = clock_timestamp()
    WHERE suspended_at IS NULL
        AND coalesce(purged_at < clock_timestamp() - interval '5 seconds', true);
END;
$$;
COMMENT ON FUNCTION poky.confirm IS
'Every cache has heard of these changes, or was suspended since.';

-- Who may do it. The roles exist already (roles.sql), and nobody but the owner has a table.

REVOKE ALL ON SCHEMA poky FROM public;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA poky FROM public;

-- The service may call the interface and nothing else: no table, no DDL.
GRANT USAGE ON SCHEMA poky TO poky_service, poky_reader, poky_monitor;
DO $$
DECLARE
    v_function regprocedure;
BEGIN
    FOR v_function IN
        SELECT p.oid FROM pg_catalog.pg_proc AS p
        WHERE p.pronamespace = 'poky'::regnamespace AND p.proname NOT LIKE '\_%'
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO poky_service', v_function);
    END LOOP;
END;
$$;

GRANT EXECUTE ON FUNCTION
poky.get, poky.get_many, poky.list, poky.buckets, poky.status TO poky_reader;
GRANT EXECUTE ON FUNCTION poky.buckets, poky.status TO poky_monitor;

INSERT INTO poky.migration (name, checksum, release) VALUES
    ('schema.sql', 'dcb0ab2d9d8e49228faf0838dd5c538b5516872b41be363f38e074d3375533d4', '0.1.0'),
    ('flat.sql', '45ee659bbf685cd7468b9cfe022d0519f0a8296bf1ee17cbec702e22879dd903', '0.1.0'),
    ('functions.sql', '84bc7b286d79917f85a45941f7bbc6d7f42869236007c89bd7a89e6b2b5dda31', '0.1.0'),
    ('grants.sql', '84b6fc8b10ba8a9276a41b15bae469e7147f5f0d0edd5e9c7356acb6a7f94885', '0.1.0');
COMMIT;
