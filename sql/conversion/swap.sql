-- From flat to partitioned, last step: the partitions hold everything and take over.

-- Every function reads the registry first and keeps its lock: under this one, none is in progress.
LOCK TABLE poky.bucket IN ACCESS EXCLUSIVE MODE;
LOCK TABLE poky._object IN ACCESS EXCLUSIVE MODE;

DROP TRIGGER follow_bucket ON poky.bucket;
UPDATE poky.bucket SET leaf = '_o_' || id;

DROP TABLE poky._object;
DROP TABLE poky._conversion;
DROP FUNCTION poky._follow_bucket;
DROP FUNCTION poky._mirror_object;
ALTER TABLE poky._partitioned RENAME TO _object;
ALTER INDEX poky._partitioned_pkey RENAME TO _object_pkey;
SELECT poky._drop_functions(0);
SELECT poky._renew_recording(b.leaf) FROM poky.bucket AS b WHERE b.changes_kept IS NOT NULL;
COMMENT ON TABLE poky._object IS 'The objects of all buckets.';
