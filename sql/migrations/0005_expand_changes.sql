-- The changes of a bucket can be recorded, and followed.
LOCK TABLE poky.bucket IN ACCESS EXCLUSIVE MODE;
ALTER TABLE poky.bucket ADD COLUMN changes_kept integer
CHECK (changes_kept BETWEEN 1 AND 31622400);
ALTER TABLE poky.bucket ADD COLUMN changes_since pg_snapshot;
COMMENT ON COLUMN poky.bucket.changes_kept IS
'Seconds for which its changes are kept; null: they are not recorded.';
COMMENT ON COLUMN poky.bucket.changes_since IS
'What was committed when recording began: every later change is recorded.';

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

-- It gets another result; functions.sql creates it again in this transaction.
DROP FUNCTION IF EXISTS poky.buckets();
