-- Where buckets are, if there are several databases (docs/shards.md). Control has a row of
-- poky.placement for each bucket that is elsewhere, and gives out all ids. A database that has no
-- row of poky.bucket for a bucket refuses whatever is asked of it: no map can be wrong with effect.

CREATE OR REPLACE FUNCTION poky._settle_name(p_bucket text) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    -- Until the end of the transaction: a name is given to one database.
    PERFORM pg_advisory_xact_lock(hashtextextended('poky bucket ' || p_bucket, 0));
    IF EXISTS (SELECT FROM poky.placement AS e WHERE e.name = p_bucket)
        OR EXISTS (SELECT FROM poky.shard AS s WHERE s.number > 0)
    THEN
        PERFORM poky._refuse_elsewhere(p_bucket);
    END IF;
END;
$$;
COMMENT ON FUNCTION poky._settle_name IS
'PK421 unless a bucket of this name may be made here: on control, and not placed elsewhere.';

CREATE OR REPLACE FUNCTION poky.place(
    p_bucket text, OUT shard integer, OUT id integer, OUT settled boolean, OUT moving boolean
)
RETURNS SETOF record
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
    SELECT p.shard, p.id, p.settled, coalesce(m.step IN ('fence', 'depart', 'arrive'), false)
    FROM (
        SELECT 0 AS shard, b.id, true AS settled FROM poky.bucket AS b WHERE b.name = p_bucket
        UNION ALL
        SELECT e.shard, e.id, e.settled FROM poky.placement AS e WHERE e.name = p_bucket
    ) AS p
    LEFT JOIN poky.move AS m ON m.id = p.id
    LIMIT 1
$$;
COMMENT ON FUNCTION poky.place IS
'On control: which database has a bucket, under which id. moving: it changes its place just now. No row: there is no such bucket.';

CREATE OR REPLACE FUNCTION poky.places(
    OUT name text, OUT shard integer, OUT id integer, OUT settled boolean
)
RETURNS SETOF record
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
    SELECT b.name, 0, b.id, true FROM poky.bucket AS b
    UNION ALL
    SELECT e.name, e.shard, e.id, e.settled FROM poky.placement AS e
    ORDER BY 1
$$;
COMMENT ON FUNCTION poky.places IS 'On control: the place of every bucket, by name.';

CREATE OR REPLACE FUNCTION poky.place_bucket(p_bucket text, p_shard integer)
RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
DECLARE
    v_id integer;
BEGIN
    PERFORM poky._check_names(p_bucket, '{}');
    PERFORM poky._settle_name(p_bucket);
    IF EXISTS (SELECT FROM poky.bucket AS b WHERE b.name = p_bucket) THEN
        PERFORM poky._refuse_elsewhere(p_bucket);
    END IF;
    v_id := nextval(pg_get_serial_sequence('poky.bucket', 'id'));
    INSERT INTO poky.placement (name, id, shard, epoch)
    VALUES (p_bucket, v_id, p_shard, nextval('poky.revision'));
    RETURN v_id;
END;
$$;
COMMENT ON FUNCTION poky.place_bucket IS
'On control: the id under which another database is to make a bucket (poky.adopt_bucket). PK400; PK421: it has a place.';

CREATE OR REPLACE FUNCTION poky.adopt_bucket(p_bucket text, p_id integer) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
BEGIN
    PERFORM poky._check_names(p_bucket, '{}');
    IF NOT EXISTS (SELECT FROM poky.shard AS s WHERE s.number > 0) OR poky._is_flat() THEN
        RAISE EXCEPTION USING
            ERRCODE = 'PK409',
            HINT = 'not_a_shard',
            MESSAGE = 'Buckets are adopted by a database that is a shard and partitioned: run poky'
                ' migrate with POKY_OWNER_SHARDS.';
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('poky bucket ' || p_bucket, 0));
    INSERT INTO poky.bucket AS b (id, name) OVERRIDING SYSTEM VALUE VALUES (p_id, p_bucket)
    ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        IF NOT EXISTS (SELECT FROM poky.bucket AS b WHERE b.id = p_id AND b.name = p_bucket) THEN
            RAISE EXCEPTION USING
                ERRCODE = 'PK409',
                HINT = 'bucket_left_over',
                MESSAGE = format('Shard %s has a bucket %s that control does not know of, under'
                    ' another id. Look at it, and drop it there: poky bucket drop -d the shard''s DSN.',
                    (SELECT s.number FROM poky.shard AS s), p_bucket);
        END IF;
        RETURN false;
    END IF;
    UPDATE poky.bucket AS b SET leaf = poky._create_leaf(p_id, '_object') WHERE b.id = p_id;
    DELETE FROM poky.placement AS e WHERE e.name = p_bucket;
    RETURN true;
END;
$$;
COMMENT ON FUNCTION poky.adopt_bucket IS
'On a shard: make a bucket under the id that control gave it, unless it is there; true if made. PK400, PK409, PK421.';

CREATE OR REPLACE FUNCTION poky.settle_bucket(p_bucket text, p_id integer, p_settled boolean)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
BEGIN
    UPDATE poky.placement SET settled = p_settled WHERE name = p_bucket AND id = p_id;
    IF NOT p_settled THEN
        PERFORM poky._refuse_moving(p_id);
    END IF;
END;
$$;
COMMENT ON FUNCTION poky.settle_bucket IS
'On control: the other database has made the bucket, and it is there for everybody; or it is about to drop it. PK503: it is being moved.';

CREATE OR REPLACE FUNCTION poky._refuse_moving(p_id integer) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    IF EXISTS (SELECT FROM poky.move AS m WHERE m.id = p_id) THEN
        RAISE EXCEPTION USING
            ERRCODE = 'PK503',
            HINT = 'bucket_moving',
            MESSAGE = 'The bucket is being moved to another database. Try again later.';
    END IF;
END;
$$;
COMMENT ON FUNCTION poky._refuse_moving IS
'On control, with the row of the bucket''s place locked: PK503 if it is being moved.';

CREATE OR REPLACE FUNCTION poky.displace_bucket(p_bucket text, p_id integer) RETURNS void
LANGUAGE sql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
    DELETE FROM poky.placement WHERE name = p_bucket AND id = p_id AND NOT settled
$$;
COMMENT ON FUNCTION poky.displace_bucket IS
'On control: the other database has dropped the bucket. Its visibility goes with it.';

CREATE OR REPLACE FUNCTION poky.adopt_policy(p_tag text, p_revision bigint) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
BEGIN
    UPDATE poky.policy AS p SET tag = p_tag, revision = p_revision
    WHERE p.revision <= p_revision AND p.tag <> p_tag AND EXISTS (SELECT FROM poky.shard AS s WHERE s.number > 0);
    RETURN FOUND;
END;
$$;
COMMENT ON FUNCTION poky.adopt_policy IS
'On a shard: from now on decisions hold that were made under this tag of control''s, unless a later one is here.';

CREATE OR REPLACE FUNCTION poky.policy_tag(OUT tag text, OUT revision bigint) RETURNS record
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
    SELECT p.tag, p.revision FROM poky.policy AS p
$$;
COMMENT ON FUNCTION poky.policy_tag IS 'The tag of the policy now, and when it was drawn, as a revision.';

CREATE OR REPLACE FUNCTION poky.expect_caches() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
BEGIN
    IF EXISTS (SELECT FROM poky.cache_node)
        OR NOT EXISTS (SELECT FROM poky.shard AS s WHERE s.number > 0)
    THEN
        RETURN;
    END IF;
    -- As in poky.register_node: no change that is under way may believe that there is none.
    LOCK TABLE poky.cache_node IN ACCESS EXCLUSIVE MODE;
    INSERT INTO poky.cache_node (name, url, generation, suspended_at, drained)
    VALUES ('-', 'http://control', gen_random_uuid(), clock_timestamp(), true)
    ON CONFLICT DO NOTHING;
END;
$$;
COMMENT ON FUNCTION poky.expect_caches IS
'On a shard: from now on every change is announced, for control has caches.';

CREATE OR REPLACE FUNCTION poky.shard_state(
    OUT shard integer, OUT bytes bigint, OUT buckets integer
)
RETURNS record
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
    SELECT
        s.number, pg_database_size(current_database()),
        (SELECT count(*)::integer FROM poky.bucket)
    FROM poky.shard AS s
$$;
COMMENT ON FUNCTION poky.shard_state IS 'Which shard this database is, and how full.';

CREATE OR REPLACE FUNCTION poky.moving(
    OUT name text, OUT id integer, OUT source integer, OUT target integer, OUT step text
)
RETURNS SETOF record
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
    SELECT m.name, m.id, m.source, m.target, m.step FROM poky.move AS m
$$;
COMMENT ON FUNCTION poky.moving IS 'On control: the move that was begun and has not ended; no row: there is none.';

CREATE OR REPLACE FUNCTION poky._become_shard(p_number integer) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    IF (SELECT s.number FROM poky.shard AS s) = p_number THEN
        RETURN;
    END IF;
    IF poky._is_flat() OR (SELECT s.number FROM poky.shard AS s) <> 0
        OR EXISTS (SELECT FROM poky.bucket) OR EXISTS (SELECT FROM poky.placement)
    THEN
        RAISE EXCEPTION USING
            ERRCODE = 'PK409',
            HINT = 'not_a_shard',
            MESSAGE = format('The database cannot become shard %s: a shard begins partitioned and'
                ' without buckets, and keeps its number.', p_number);
    END IF;
    UPDATE poky.shard SET number = p_number;
END;
$$;
COMMENT ON FUNCTION poky._become_shard IS
'From now on this database has the buckets that control places in it. PK409: it has buckets of its own, or another number.';
