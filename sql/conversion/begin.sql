-- From flat to partitioned, first step: from now on every new bucket gets its partition at once.
-- All steps are led by poky.conversion; each leaves a database that serves, and that can go on.

CREATE TABLE poky._partitioned (LIKE poky._object INCLUDING ALL) PARTITION BY LIST (bucket_id);

CREATE TABLE poky._conversion (
    bucket_id integer NOT NULL DEFAULT 0,
    key text COLLATE "C" NOT NULL DEFAULT '',
    copied bigint NOT NULL DEFAULT 0,
    given_up boolean NOT NULL DEFAULT false
);
COMMENT ON TABLE poky._conversion IS
'How far the conversion to the partitioned schema is: everything up to this bucket and key is copied.';
INSERT INTO poky._conversion DEFAULT VALUES;

CREATE FUNCTION poky._follow_bucket() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM poky._create_leaf(new.id, '_partitioned');
    RETURN NULL;
END;
$$;
COMMENT ON FUNCTION poky._follow_bucket IS 'Conversion: give a new bucket its partition.';

-- Waits for transactions that create a bucket: later ones fire the trigger.
CREATE TRIGGER follow_bucket AFTER INSERT ON poky.bucket
FOR EACH ROW EXECUTE FUNCTION poky._follow_bucket();
