-- Who follows a bucket goes on when it moves to another database.
LOCK TABLE poky.bucket IN ACCESS EXCLUSIVE MODE;
ALTER TABLE poky.bucket ADD COLUMN stay integer NOT NULL DEFAULT 0;
ALTER TABLE poky.bucket ADD COLUMN former jsonb;
COMMENT ON COLUMN poky.bucket.changes_since IS
'What was committed when recording began, or the bucket came here: every later change is recorded.';
COMMENT ON COLUMN poky.bucket.stay IS
'How often it has come from another database: its cursors tell.';
COMMENT ON COLUMN poky.bucket.former IS
'Where its changes are that were recorded in other databases, by stay, and with which cursor the next one begins.';

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

-- Followed buckets move.
DROP FUNCTION IF EXISTS poky._refuse_followed(integer);
