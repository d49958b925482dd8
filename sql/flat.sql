-- The flat schema: one table for all buckets, which need no creation.

-- fillfactor 85: room beside the row keeps updates out of the index (HOT).
ALTER TABLE poky._object SET (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.02);
