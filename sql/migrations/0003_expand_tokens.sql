-- Tokens with grants, public buckets, and the policy tag that voids decisions when they change.

LOCK TABLE poky.bucket IN ACCESS EXCLUSIVE MODE;
ALTER TABLE poky.bucket ADD COLUMN public_read boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN poky.bucket.public_read IS 'Whether its objects are read without a token.';

CREATE TABLE poky.token (
    id text COLLATE "C" PRIMARY KEY CHECK (id ~ '^[A-Za-z0-9]{12}$'),
    name text COLLATE "C" NOT NULL CHECK (length(name) <= 128 AND name ~ '^[A-Za-z0-9_.@-]+$'),
    hash text COLLATE "C" NOT NULL,
    previous_hash text COLLATE "C",
    grants text [] NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz,
    last_used_on date,
    revoked_at timestamptz
);
CREATE UNIQUE INDEX token_name ON poky.token (name) WHERE revoked_at IS NULL;
COMMENT ON TABLE poky.token IS 'Tokens and what they allow (docs/security.md); secrets are not kept.';
COMMENT ON COLUMN poky.token.hash IS
'SHA-256 of the secret, in hex. No slow hash: a secret of 190 random bits cannot be guessed.';
COMMENT ON COLUMN poky.token.previous_hash IS
'While a token is rotated, its former secret is valid as well.';
COMMENT ON COLUMN poky.token.grants IS 'Each is a right, a colon and a pattern of bucket names.';
COMMENT ON COLUMN poky.token.last_used_on IS 'The day of its last use, by the database''s clock.';

CREATE TABLE poky.policy (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    tag text COLLATE "C" NOT NULL
);
INSERT INTO poky.policy (tag) VALUES (gen_random_uuid());
COMMENT ON TABLE poky.policy IS 'One row: the version of all tokens and public buckets.';
COMMENT ON COLUMN poky.policy.tag IS
'Random, replaced by every change of a token or of a bucket''s visibility: a decision that was made under another tag is void.';

CREATE TYPE poky.credential AS (
    policy text,
    public_read boolean,
    hashes text [],
    grants text [],
    seconds_left double precision
);
COMMENT ON TYPE poky.credential IS
'What a token may do, and whether a bucket is public, under one policy; null hashes: no such token.';
