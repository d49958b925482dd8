-- The partitioned schema (default): one table per bucket, dropped in an instant.
-- The table of schema.sql, still empty, gives way to a parent with the same columns. poky.conversion
-- takes the same road with a table that is not empty; a test proves that both end the same.

CREATE TABLE poky._partitioned (LIKE poky._object INCLUDING ALL) PARTITION BY LIST (bucket_id);
DROP TABLE poky._object;
ALTER TABLE poky._partitioned RENAME TO _object;
ALTER INDEX poky._partitioned_pkey RENAME TO _object_pkey;
COMMENT ON TABLE poky._object IS 'The objects of all buckets.';
