-- The flat schema: one table for all buckets, which need no creation.

-- fillfactor 85: room beside the row keeps updates out of the index (HOT).
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
) WITH (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.02);
