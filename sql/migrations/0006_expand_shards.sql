-- Buckets can live on several databases.
LOCK TABLE poky.bucket IN ACCESS EXCLUSIVE MODE;
ALTER TABLE poky.policy ADD COLUMN revision bigint NOT NULL DEFAULT 0;
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
