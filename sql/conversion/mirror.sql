-- From flat to partitioned, second step: every bucket has its partition, and from now on every
-- change of an object is made there too, in the same transaction.

CREATE FUNCTION poky._mirror_object() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    -- No other transaction holds this key: writers wait for each other's rows in _object, and so does the
    -- copy (FOR SHARE). Delete and insert, rather than update, need no list of columns.
    IF TG_OP <> 'INSERT' THEN
        EXECUTE 'DELETE FROM poky._o_' || old.bucket_id || ' WHERE bucket_id = $1 AND key = $2'
            USING old.bucket_id, old.key;
    END IF;
    IF TG_OP <> 'DELETE' THEN
        INSERT INTO poky._partitioned VALUES (new.*);
    END IF;
    RETURN NULL;
END;
$$;
COMMENT ON FUNCTION poky._mirror_object IS 'Conversion: repeat a change in the bucket''s partition.';

-- Waits for transactions that write: later ones fire the trigger.
CREATE TRIGGER mirror_object AFTER INSERT OR UPDATE OR DELETE ON poky._object
FOR EACH ROW EXECUTE FUNCTION poky._mirror_object();
