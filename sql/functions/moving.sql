-- A bucket moves to another database (docs/shards.md): the owner's, called by poky bucket move. Each
-- step may be repeated. Never do two databases take writes of a bucket: the source refuses them,
-- then reads as well, before the target has a row of poky.bucket for it.

CREATE OR REPLACE FUNCTION poky._begin_move(p_bucket text, p_target integer) RETURNS poky.move
LANGUAGE plpgsql
AS $$
DECLARE
    v_place record;
    v_move poky.move;
BEGIN
    SELECT * INTO v_place FROM poky.place(p_bucket);
    IF v_place.id IS NULL OR NOT v_place.settled THEN
        PERFORM poky._refuse_bucket(p_bucket);
    END IF;
    -- A drop looks for the move of its bucket under the same locks.
    PERFORM FROM poky.bucket AS b WHERE b.id = v_place.id FOR UPDATE;
    PERFORM FROM poky.placement AS e WHERE e.id = v_place.id FOR UPDATE;
    INSERT INTO poky.move (name, id, source, target, step)
    SELECT p_bucket, v_place.id, v_place.shard, p_target, 'prepare'
    WHERE v_place.shard <> p_target
    ON CONFLICT DO NOTHING;
    SELECT * INTO v_move FROM poky.move;
    RETURN v_move;
END;
$$;
COMMENT ON FUNCTION poky._begin_move IS
'On control: note that a bucket is to move, unless it is there or another move is under way; the move that is. PK404.';

CREATE OR REPLACE FUNCTION poky._go_to_step(p_step text) RETURNS void
LANGUAGE sql
AS $$
    UPDATE poky.move SET step = p_step
$$;
COMMENT ON FUNCTION poky._go_to_step IS 'On control: the step that is under way from now on.';

CREATE OR REPLACE FUNCTION poky._settle_move() RETURNS void
LANGUAGE sql
AS $$
    UPDATE poky.placement AS e SET shard = m.target, epoch = nextval('poky.revision')
    FROM poky.move AS m WHERE e.id = m.id AND e.shard <> m.target;
    UPDATE poky.move SET step = 'clean'
$$;
COMMENT ON FUNCTION poky._settle_move IS 'On control: the bucket is at its target for everybody.';

CREATE OR REPLACE FUNCTION poky._end_move() RETURNS void
LANGUAGE sql
AS $$
    DELETE FROM poky.move
$$;
COMMENT ON FUNCTION poky._end_move IS 'On control: no bucket is being moved.';

CREATE OR REPLACE FUNCTION poky._prepare_departure(p_id integer) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    DELETE FROM poky._mark WHERE id = p_id;
    IF NOT EXISTS (SELECT FROM pg_publication WHERE pubname = 'poky_move_' || p_id) THEN
        EXECUTE format(
            'CREATE PUBLICATION %I FOR TABLE poky.%I, poky._mark', 'poky_move_' || p_id, '_o_' || p_id
        );
    END IF;
END;
$$;
COMMENT ON FUNCTION poky._prepare_departure IS
'On the source: publish the bucket''s partition.';

CREATE OR REPLACE FUNCTION poky._prepare_arrival(p_id integer) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    DELETE FROM poky._mark WHERE id = p_id;
    IF to_regclass('poky._o_' || p_id) IS NULL THEN
        -- With the check PostgreSQL need not read the table when it becomes a partition.
        EXECUTE format(
            'ALTER TABLE poky.%I ADD CONSTRAINT _is_of_bucket CHECK (bucket_id = %s)',
            poky._create_table(p_id, '_object'), p_id
        );
    END IF;
END;
$$;
COMMENT ON FUNCTION poky._prepare_arrival IS
'On the target: a table of the bucket''s, which no function reads yet.';

CREATE OR REPLACE FUNCTION poky._refuse_fenced() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    RAISE EXCEPTION USING
        ERRCODE = 'PK421',
        HINT = 'bucket_moving',
        MESSAGE = 'The bucket is being moved. Try again shortly.';
END;
$$;
COMMENT ON FUNCTION poky._refuse_fenced IS 'PK421 for each row that is written behind the fence.';

CREATE OR REPLACE FUNCTION poky._fence_bucket(p_id integer, p_mark text) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    v_leaf text := '_o_' || p_id;
BEGIN
    -- It waits for the writes under way (SHARE ROW EXCLUSIVE); those that wait for it meet it.
    EXECUTE format(
        'CREATE OR REPLACE TRIGGER _fence BEFORE INSERT OR UPDATE OR DELETE ON poky.%I'
        ' FOR EACH ROW EXECUTE FUNCTION poky._refuse_fenced()', v_leaf
    );
    INSERT INTO poky._mark (id, value) VALUES (p_id, p_mark)
    ON CONFLICT (id) DO UPDATE SET value = excluded.value;
END;
$$;
COMMENT ON FUNCTION poky._fence_bucket IS
'On the source: refuse every further write of the bucket; the mark is the last thing replicated.';

CREATE OR REPLACE FUNCTION poky._unfence_bucket(p_id integer) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    IF EXISTS (
        SELECT FROM pg_trigger AS t
        WHERE t.tgrelid = to_regclass('poky._o_' || p_id) AND t.tgname = '_fence'
    ) THEN
        BEGIN
            EXECUTE format('DROP TRIGGER _fence ON poky.%I', '_o_' || p_id);
        EXCEPTION WHEN lock_not_available THEN  -- a read holds on to it: writes need not wait
            EXECUTE format('ALTER TABLE poky.%I DISABLE TRIGGER _fence', '_o_' || p_id);
        END;
    END IF;
END;
$$;
COMMENT ON FUNCTION poky._unfence_bucket IS 'On the source: take writes again.';

CREATE OR REPLACE FUNCTION poky._has_arrived(p_id integer, p_mark text) RETURNS boolean
LANGUAGE sql STABLE
AS $$
    SELECT EXISTS (SELECT FROM poky._mark AS m WHERE m.id = p_id AND m.value = p_mark)
$$;
COMMENT ON FUNCTION poky._has_arrived IS 'On the target: whether all before this mark is here.';

CREATE OR REPLACE FUNCTION poky._is_copied(p_id integer) RETURNS boolean
LANGUAGE sql STABLE
AS $$
    SELECT
        count(*) FILTER (WHERE r.srrelid = to_regclass('poky._o_' || p_id)) = 1
        AND bool_and(r.srsubstate = 'r')
    FROM pg_subscription_rel AS r
    JOIN pg_subscription AS s ON s.oid = r.srsubid
    JOIN pg_database AS d ON d.oid = s.subdbid AND d.datname = current_database()
    WHERE s.subname = 'poky_move_' || p_id
$$;
COMMENT ON FUNCTION poky._is_copied IS
'On the target: whether what the source had at first is here. The mark may be, and the objects not: their tables are copied apart.';

CREATE OR REPLACE FUNCTION poky._lock_arrival(p_id integer) RETURNS void
LANGUAGE sql
AS $$
    SELECT pg_advisory_xact_lock(hashtextextended('poky arrival ' || p_id, 0))
$$;
COMMENT ON FUNCTION poky._lock_arrival IS
'On the target: until the end of the transaction no other session lets the bucket arrive or drops what is here of it. After a failover of control two commands may believe to be the only one.';

CREATE OR REPLACE FUNCTION poky._depart_bucket(p_id integer, p_target integer) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    v_bucket poky.bucket;
BEGIN
    SELECT * INTO v_bucket FROM poky.bucket AS b WHERE b.id = p_id;
    IF v_bucket.id IS NULL THEN
        RETURN;  -- it has departed
    END IF;
    IF NOT EXISTS (
        SELECT FROM pg_trigger AS t
        WHERE t.tgrelid = format('poky.%I', v_bucket.leaf)::regclass
            AND t.tgname = '_fence' AND t.tgenabled <> 'D'
    ) THEN
        RAISE EXCEPTION 'the bucket with the id % takes writes: it has to be fenced first', p_id;
    END IF;
    -- Reads that are under way end first.
    PERFORM poky._lock_leaf(v_bucket.leaf);
    PERFORM poky._end_stay(v_bucket);
    PERFORM poky._drop_functions(p_id);
    DELETE FROM poky.bucket AS b WHERE b.id = p_id RETURNING b.* INTO v_bucket;
    INSERT INTO poky.placement AS e (name, id, shard, epoch, settled, public_read, facts)
    SELECT
        v_bucket.name, p_id, p_target, nextval('poky.revision'), true, v_bucket.public_read,
        to_jsonb(v_bucket) || jsonb_build_object(
            'revision', s.last_value,
            'shard', (SELECT h.number FROM poky.shard AS h),
            'mark', (SELECT m.value FROM poky._mark AS m WHERE m.id = p_id)
        )
    FROM poky.revision AS s
    ON CONFLICT (name) DO UPDATE SET
        id = excluded.id, shard = excluded.shard, epoch = excluded.epoch, settled = true,
        facts = excluded.facts;
END;
$$;
COMMENT ON FUNCTION poky._depart_bucket IS
'On the source: the bucket is not here any more, for reads neither (PK421); its table stays for poky._forget_departed.';

CREATE OR REPLACE FUNCTION poky._departed(p_id integer) RETURNS jsonb
LANGUAGE sql STABLE
AS $$
    SELECT e.facts FROM poky.placement AS e WHERE e.id = p_id
$$;
COMMENT ON FUNCTION poky._departed IS
'On the source: what the target must know of a bucket that has departed; null: it has not.';

CREATE OR REPLACE FUNCTION poky._arrive_bucket(p_id integer, p_facts jsonb) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    v_bucket poky.bucket := jsonb_populate_record(NULL::poky.bucket, p_facts);
    v_leaf text := '_o_' || p_id;
    v_public boolean;
    v_sequence pg_catalog.pg_sequence;
    v_steps bigint;
BEGIN
    PERFORM poky._lock_arrival(p_id);
    IF EXISTS (SELECT FROM poky.bucket AS b WHERE b.id = p_id) THEN
        RETURN;  -- it has arrived
    END IF;
    IF p_facts ? 'mark' AND NOT (
        poky._has_arrived(p_id, p_facts ->> 'mark') AND poky._is_copied(p_id)
    ) THEN
        RAISE EXCEPTION USING
            ERRCODE = 'PK503',
            HINT = 'bucket_incomplete',
            MESSAGE = 'What the source wrote last is not here yet, or not any more.';
    END IF;
    -- Revisions go on above all that the source has given out: a million more, for this database
    -- draws some meanwhile.
    SELECT s.* INTO v_sequence FROM pg_catalog.pg_sequence AS s
    WHERE s.seqrelid = 'poky.revision'::regclass;
    IF (SELECT s.last_value FROM poky.revision AS s) <= (p_facts ->> 'revision')::bigint THEN
        v_steps := ((p_facts ->> 'revision')::bigint - v_sequence.seqstart)
            / v_sequence.seqincrement + 1000000;
        PERFORM setval('poky.revision', v_sequence.seqstart + v_steps * v_sequence.seqincrement);
    END IF;
    DELETE FROM poky.placement AS e WHERE e.name = v_bucket.name
    RETURNING e.public_read INTO v_public;
    v_bucket.leaf := v_leaf;
    v_bucket := poky._begin_stay(v_bucket, (p_facts ->> 'shard')::integer);
    v_bucket.public_read := EXISTS (SELECT FROM poky.shard AS s WHERE s.number = 0)
        AND coalesce(v_public, v_bucket.public_read);
    INSERT INTO poky.bucket OVERRIDING SYSTEM VALUE SELECT (v_bucket).*;
    EXECUTE format(
        'ALTER TABLE poky._object ATTACH PARTITION poky.%I FOR VALUES IN (%s)', v_leaf, p_id
    );
    EXECUTE format('ALTER TABLE poky.%I DROP CONSTRAINT _is_of_bucket', v_leaf);
    PERFORM poky._create_functions(p_id);
    PERFORM poky._renew_recording(v_leaf);
    IF v_bucket.changes_kept IS NOT NULL THEN
        BEGIN
            PERFORM poky.renew_changes();
        EXCEPTION WHEN lock_not_available THEN
            NULL;  -- an instance does it within ten minutes
        END;
    END IF;
END;
$$;
COMMENT ON FUNCTION poky._arrive_bucket IS
'On the target: from now on the bucket is here. PK503: not all of it is.';

CREATE OR REPLACE FUNCTION poky._queue_arrived(p_id integer) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    -- A mark that is published is one of a later move, of which this is the source.
    DELETE FROM poky._mark
    WHERE id = p_id AND NOT EXISTS (SELECT FROM pg_publication WHERE pubname = 'poky_move_' || p_id);
    EXECUTE format(
        'INSERT INTO poky._expiry (due_at, bucket_id, key)'
        ' SELECT o.expires_at, o.bucket_id, o.key FROM poky.%I AS o WHERE o.expires_at IS NOT NULL'
        ' ON CONFLICT DO NOTHING', '_o_' || p_id
    );
END;
$$;
COMMENT ON FUNCTION poky._queue_arrived IS
'On the target: queue the removal of what expires. Until then it is missing in time, but not removed.';

CREATE OR REPLACE FUNCTION poky._forget_departed(p_id integer) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    IF EXISTS (SELECT FROM poky.bucket AS b WHERE b.id = p_id) THEN
        RAISE EXCEPTION 'the bucket with the id % is here', p_id;
    END IF;
    IF poky._departed(p_id) IS NULL THEN
        RETURN;  -- it is forgotten, and what is here may be of a later move, of which this is the target
    END IF;
    EXECUTE format('DROP PUBLICATION IF EXISTS %I', 'poky_move_' || p_id);
    IF to_regclass('poky._o_' || p_id) IS NOT NULL THEN
        PERFORM poky._lock_leaf('_o_' || p_id);
        EXECUTE format('DROP TABLE poky.%I', '_o_' || p_id);
    END IF;
    DELETE FROM poky._expiry WHERE bucket_id = p_id;
    DELETE FROM poky._mark WHERE id = p_id;
    -- A shard refuses what it does not have, remembered or not.
    DELETE FROM poky.placement AS e
    WHERE e.id = p_id AND EXISTS (SELECT FROM poky.shard AS s WHERE s.number > 0);
    UPDATE poky.placement SET facts = NULL WHERE id = p_id;
END;
$$;
COMMENT ON FUNCTION poky._forget_departed IS
'On the source, once the bucket has arrived: drop its table and what else is left of it.';

CREATE OR REPLACE FUNCTION poky._give_up_arrival(p_id integer) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM poky._lock_arrival(p_id);
    IF EXISTS (SELECT FROM poky.bucket AS b WHERE b.id = p_id) THEN
        RAISE EXCEPTION 'the bucket with the id % is here', p_id;
    END IF;
    EXECUTE format('DROP TABLE IF EXISTS poky.%I', '_o_' || p_id);
    DELETE FROM poky._mark WHERE id = p_id;
END;
$$;
COMMENT ON FUNCTION poky._give_up_arrival IS 'On the target: drop what was prepared for a bucket.';

CREATE OR REPLACE FUNCTION poky._give_up_departure(p_id integer) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM poky._unfence_bucket(p_id);
    EXECUTE format('DROP PUBLICATION IF EXISTS %I', 'poky_move_' || p_id);
    DELETE FROM poky._mark WHERE id = p_id;
END;
$$;
COMMENT ON FUNCTION poky._give_up_departure IS
'On the source, before the bucket has departed: take writes again, and publish nothing.';
