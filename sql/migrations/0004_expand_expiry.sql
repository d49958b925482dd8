-- Objects expire: when, a bucket's default, and the queue of what is to be removed.
LOCK TABLE poky.bucket IN ACCESS EXCLUSIVE MODE;
ALTER TABLE poky.bucket ADD COLUMN default_ttl integer
CHECK (default_ttl BETWEEN 1 AND 1000000000);
COMMENT ON COLUMN poky.bucket.default_ttl IS
'Seconds after which an object expires that is written without a ttl; null: never.';

ALTER TABLE poky._object ADD COLUMN expires_at timestamptz;
ALTER TYPE poky.object ADD ATTRIBUTE expires_at bigint, ADD ATTRIBUTE milliseconds_left bigint;
ALTER TYPE poky.listed ADD ATTRIBUTE expires_at bigint;
ALTER TYPE poky.outcome ADD ATTRIBUTE expires_at bigint;

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

-- Both get another result; functions.sql creates them again in this transaction.
DROP FUNCTION poky.buckets();
DROP FUNCTION IF EXISTS poky.get_each (text [], integer [], text []);
