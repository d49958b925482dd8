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
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    public_read boolean NOT NULL DEFAULT false,
    default_ttl integer CHECK (default_ttl BETWEEN 1 AND 1000000000),
    changes_kept integer CHECK (changes_kept BETWEEN 1 AND 31622400),
    changes_since pg_snapshot,
    stay integer NOT NULL DEFAULT 0,
    former jsonb
);
COMMENT ON TABLE poky.bucket IS 'The registry of buckets. Tables are named by id, never by name.';
COMMENT ON COLUMN poky.bucket.leaf IS
'The partition that holds this bucket alone; null in the flat schema.';
COMMENT ON COLUMN poky.bucket.declared IS
'False for a bucket that only its objects brought to life, in the flat schema or before the conversion.';
COMMENT ON COLUMN poky.bucket.unsettled_until IS
'The latest modified_at of a deleted object that was still ahead of the server''s clock: up to then a client''s date says nothing certain.';

COMMENT ON COLUMN poky.bucket.public_read IS 'Whether its objects are read without a token.';
COMMENT ON COLUMN poky.bucket.default_ttl IS
'Seconds after which an object expires that is written without a ttl; null: never.';
COMMENT ON COLUMN poky.bucket.changes_kept IS
'Seconds for which its changes are kept; null: they are not recorded.';
COMMENT ON COLUMN poky.bucket.changes_since IS
'What was committed when recording began, or the bucket came here: every later change is recorded.';
COMMENT ON COLUMN poky.bucket.stay IS
'How often it has come from another database: its cursors tell.';
COMMENT ON COLUMN poky.bucket.former IS
'Where its changes are that were recorded in other databases, by stay, and with which cursor the next one begins.';

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
    content_encoding text COLLATE "C",  -- as the client sent it (RFC 9110 8.4); null: none
    expires_at timestamptz,  -- from then on the object is missing; null: never
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

-- A table and not an index on expires_at: objects that do not expire pay nothing, and no migration
-- has to read all objects.
CREATE TABLE poky._expiry (
    due_at timestamptz NOT NULL,
    bucket_id integer NOT NULL,
    key text COLLATE "C" NOT NULL,
    PRIMARY KEY (bucket_id, key)
);
CREATE INDEX _expiry_due ON poky._expiry (due_at);
ALTER TABLE poky._expiry SET (autovacuum_vacuum_scale_factor = 0.02);
COMMENT ON TABLE poky._expiry IS
'The queue of objects that expire: poky._object.expires_at decides, this only says where to look, and when.';

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

CREATE TABLE poky._change (
    xid xid8 NOT NULL,
    revision bigint NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    modified_at bigint,
    bucket_id integer NOT NULL,
    key text COLLATE "C" NOT NULL,
    result text COLLATE "C" NOT NULL,
    hash text COLLATE "C",
    step pg_snapshot
) PARTITION BY RANGE (recorded_at);
CREATE INDEX _change_place ON poky._change (bucket_id, xid, revision);
CREATE INDEX _change_step ON poky._change (bucket_id, pg_snapshot_xmax(step))
WHERE step IS NOT NULL;
COMMENT ON TABLE poky._change IS
'The changes of buckets that record them: written by triggers in the change''s own transaction, in a partition for each day.';
COMMENT ON COLUMN poky._change.xid IS
'The transaction: with a cursor, which is a snapshot, it says whether a reader has seen the row.';
COMMENT ON COLUMN poky._change.revision IS
'Drawn while the key was locked: the order within what is new to a reader.';
COMMENT ON COLUMN poky._change.step IS
'Now and then, what was committed at that moment: a reader that is far behind goes from step to step.';

-- What comes while a day has no partition.
CREATE TABLE poky._change_rest PARTITION OF poky._change DEFAULT;
COMMENT ON TABLE poky._change_rest IS 'Changes of days that have no partition.';

CREATE TABLE poky.token (
    id text COLLATE "C" PRIMARY KEY CHECK (id ~ '^[A-Za-z0-9]{12}$'),
    name text COLLATE "C" NOT NULL CHECK (length(name) <= 128 AND name ~ '^[A-Za-z0-9_.@-]+$'),
    hash text COLLATE "C" NOT NULL,
    previous_hash text COLLATE "C",
    grants text [] NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz,
    last_used_on date,
    revoked_at timestamptz
);
CREATE UNIQUE INDEX token_name ON poky.token (name) WHERE revoked_at IS NULL;
COMMENT ON TABLE poky.token IS 'Tokens and what they allow (docs/security.md); secrets are not kept.';
COMMENT ON COLUMN poky.token.hash IS
'SHA-256 of the secret, in hex. No slow hash: a secret of 190 random bits cannot be guessed.';
COMMENT ON COLUMN poky.token.previous_hash IS
'While a token is rotated, its former secret is valid as well.';
COMMENT ON COLUMN poky.token.grants IS 'Each is a right, a colon and a pattern of bucket names.';
COMMENT ON COLUMN poky.token.last_used_on IS 'The day of its last use, by the database''s clock.';

CREATE TABLE poky.policy (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    tag text COLLATE "C" NOT NULL,
    revision bigint NOT NULL DEFAULT 0
);
INSERT INTO poky.policy (tag) VALUES (gen_random_uuid());
COMMENT ON TABLE poky.policy IS 'One row: the version of all tokens and public buckets.';
COMMENT ON COLUMN poky.policy.tag IS
'Random, replaced by every change of a token or of a bucket''s visibility: a decision that was made under another tag is void.';
COMMENT ON COLUMN poky.policy.revision IS
'Drawn at each change: of two tags that reach another database, the later one stays.';

CREATE TABLE poky.shard (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    number integer NOT NULL CHECK (number BETWEEN 0 AND 255)
);
INSERT INTO poky.shard (number) VALUES (0);
COMMENT ON TABLE poky.shard IS
'One row: which of several databases this is. 0: control, which knows where each bucket is; also the only one.';

CREATE TABLE poky.placement (
    name text COLLATE "C" PRIMARY KEY,
    id integer NOT NULL,
    shard integer NOT NULL,
    epoch bigint NOT NULL,
    settled boolean NOT NULL DEFAULT false,
    public_read boolean NOT NULL DEFAULT false,
    facts jsonb
);
COMMENT ON TABLE poky.placement IS
'Where buckets are that are not here: on control all of them, elsewhere those that have moved away.';
COMMENT ON COLUMN poky.placement.epoch IS 'Drawn at each change of place: the higher is the newer.';
COMMENT ON COLUMN poky.placement.settled IS 'False until the other database has made the bucket.';
COMMENT ON COLUMN poky.placement.public_read IS
'On control: whether its objects are read without a token.';
COMMENT ON COLUMN poky.placement.facts IS
'Of a bucket that has moved away: what its new database must know of it.';

CREATE TABLE poky.move (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    name text COLLATE "C" NOT NULL,
    id integer NOT NULL,
    source integer NOT NULL,
    target integer NOT NULL,
    step text COLLATE "C" NOT NULL,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE poky.move IS
'On control: the bucket that is being moved, if one is.';
COMMENT ON COLUMN poky.move.step IS 'The step that is under way: all before it are done.';

-- Replicated together with a bucket: its last row says that everything before it has arrived.
CREATE TABLE poky._mark (
    id integer PRIMARY KEY,
    value text COLLATE "C" NOT NULL
);
COMMENT ON TABLE poky._mark IS 'By bucket: what the source has written last, while it is moved.';

CREATE TABLE poky._stay (
    id integer NOT NULL,
    stay integer NOT NULL,
    since pg_snapshot NOT NULL,
    until pg_snapshot NOT NULL,
    changes_kept integer NOT NULL,
    ended_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (id, stay)
);
COMMENT ON TABLE poky._stay IS
'Buckets that have moved away: between which snapshots their changes were recorded here, and how long these are kept.';

CREATE TYPE poky.object AS (
    key text,
    revision bigint,
    hash text,
    modified_at bigint,
    unchanged_since bigint,
    content_type text,
    value bytea,
    content_encoding text,
    expires_at bigint,
    milliseconds_left bigint
);
COMMENT ON TYPE poky.object IS 'An object as poky.get gives it.';

CREATE TYPE poky.listed AS (
    key text,
    size integer,
    revision bigint,
    hash text,
    modified_at bigint,
    content_type text,
    content_encoding text,
    expires_at bigint
);
COMMENT ON TYPE poky.listed IS 'An object as poky.list gives it: everything but the value.';

CREATE TYPE poky.outcome AS (
    ordinal integer,
    outcome text,
    revision bigint,
    hash text,
    modified_at bigint,
    outbox_id bigint,
    expires_at bigint
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

CREATE TYPE poky.credential AS (
    policy text,
    public_read boolean,
    hashes text [],
    grants text [],
    seconds_left double precision
);
COMMENT ON TYPE poky.credential IS
'What a token may do, and whether a bucket is public, under one policy; null hashes: no such token.';
