-- The partitioned schema (default): one table per bucket, dropped in an instant.

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
) PARTITION BY LIST (bucket_id);
