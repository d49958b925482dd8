-- What is stored: sequence, tables, constraints. Applied once, to an empty database, as poky_owner,
-- followed by partitioned.sql (the default) or flat.sql, which create poky._object.
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
    phase text NOT NULL CHECK (phase IN ('expand', 'contract')),
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
'False for a bucket of the flat schema that only its objects brought to life.';
COMMENT ON COLUMN poky.bucket.unsettled_until IS
'The latest modified_at of a deleted object that was still ahead of the server''s clock: up to then a client''s date says nothing certain.';

CREATE TABLE poky.cache_node (
    name text COLLATE "C" PRIMARY KEY,
    url text NOT NULL,
    generation text NOT NULL,
    lease_seconds double precision NOT NULL DEFAULT 0,
    suspended_at timestamptz,
    drained boolean NOT NULL DEFAULT false,
    registered_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE poky.cache_node IS
'The caches that must be told of every change before it is acknowledged.';
COMMENT ON COLUMN poky.cache_node.generation IS
'A random token, never a counter: restore and failover repeat counters.';
COMMENT ON COLUMN poky.cache_node.lease_seconds IS 'The longest lease ever granted to this node.';
COMMENT ON COLUMN poky.cache_node.drained IS
'True once every lease granted before suspended_at has certainly run out.';

CREATE TABLE poky._outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    bucket text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    revision bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE poky._outbox IS
'Changes that the caches may not have heard of: written with the change, removed after the purge.';
