-- The caches (docs/cache.md). A node may use its copies while it holds a lease of its generation;
-- a node that may have missed a purge is suspended, and its copies die with the generation.

CREATE OR REPLACE FUNCTION poky.nodes() RETURNS SETOF poky.node
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
    SELECT
        n.name, n.url, n.generation, n.lease_seconds,
        extract(epoch FROM n.leased_at)::bigint, extract(epoch FROM n.suspended_at)::bigint,
        n.drained, n.held, extract(epoch FROM n.purged_at)::bigint
    FROM poky.cache_node AS n ORDER BY n.name
$$;
COMMENT ON FUNCTION poky.nodes IS
'All caches by name. To be queried after the commit of a change, never before.';

CREATE OR REPLACE FUNCTION poky._is_private_url(p_url text) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
    v_host text := lower(substring(
        p_url from '^http://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\])(?::[0-9]{1,5})?/?$'
    ));
BEGIN
    IF v_host ~ '^[a-z][a-z0-9-]*$'
        OR v_host ~ '^([a-z0-9-]+\.)+(internal|local|lan|localdomain|home\.arpa)$' THEN
        RETURN true;  -- a name that no public resolver knows
    END IF;
    IF v_host ~ '^[0-9.]+$' AND v_host ~ '(^|\.)0[0-9]' THEN
        RETURN false;  -- resolvers read 010 as 8, PostgreSQL as 10
    END IF;
    RETURN coalesce(trim(both '[]' from v_host)::inet <<= ANY (ARRAY[
        '127.0.0.0/8', '10.0.0.0/8', '172.16.0.0/12', '192.168.0.0/16', '100.64.0.0/10',
        '::1/128', 'fc00::/7'
    ]::inet []), false);
EXCEPTION WHEN invalid_text_representation THEN
    RETURN false;
END;
$$;
COMMENT ON FUNCTION poky._is_private_url IS
'Whether this is http to loopback or a private address: no place to which keys may leak.';

CREATE OR REPLACE FUNCTION poky.register_node(p_node text, p_url text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
DECLARE
    v_url text;
BEGIN
    IF p_node IS NULL OR p_node !~ '^[A-Za-z0-9_.-]+$' OR length(p_node) > 256 THEN
        RAISE EXCEPTION USING
            ERRCODE = 'PK400',
            HINT = 'bad_cache_name',
            MESSAGE = 'A cache''s name is 1 to 256 characters of A-Z a-z 0-9 _ . -';
    END IF;
    -- Waits for the writers that looked for caches, found none, and have not committed yet:
    -- their changes would not be purged at this node.
    LOCK TABLE poky.cache_node IN ACCESS EXCLUSIVE MODE;
    SELECT url INTO v_url FROM poky.cache_node WHERE name = p_node;
    IF v_url = p_url THEN
        RETURN false;
    END IF;
    -- Every purge tells a bucket and a key, so a stolen password must not choose who hears it.
    IF poky._is_private_url(p_url) IS NOT TRUE
        AND NOT pg_has_role(session_user, 'poky_owner', 'MEMBER') THEN
        RAISE EXCEPTION USING
            ERRCODE = 'PK400',
            HINT = 'bad_cache_url',
            MESSAGE = 'A cache''s URL is http:// with a loopback or private address, or a name of'
                ' the local network. Any other one is registered by the owner: poky cache add';
    END IF;
    IF v_url IS NULL THEN
        INSERT INTO poky.cache_node (name, url, generation, suspended_at, drained)
        VALUES (p_node, p_url, gen_random_uuid(), clock_timestamp(), true);
    ELSE
        -- The node at the old address may still hold a lease.
        PERFORM poky.suspend_node(p_node);
        UPDATE poky.cache_node SET url = p_url WHERE name = p_node;
    END IF;
    RETURN true;
END;
$$;
COMMENT ON FUNCTION poky.register_node IS
'Make a cache known, or its new address; it starts suspended. False if nothing changed. PK400, also for a URL outside private networks unless the owner asks.';

CREATE OR REPLACE FUNCTION poky.lease(p_node text, p_seconds double precision) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
DECLARE
    v_generation text;
BEGIN
    -- Writers wait for a lease, so none is for ever. POKY_LEASE_SECONDS is at most this.
    IF (p_seconds BETWEEN 0 AND 300) IS NOT TRUE THEN
        RAISE EXCEPTION USING
            ERRCODE = 'PK400',
            HINT = 'bad_lease',
            MESSAGE = 'A lease is for 0 to 300 seconds.';
    END IF;
    -- An update, so that it takes its turn with poky.suspend_node.
    UPDATE poky.cache_node
    SET lease_seconds = greatest(lease_seconds, p_seconds), leased_at = clock_timestamp()
    WHERE name = p_node AND suspended_at IS NULL
    RETURNING generation INTO v_generation;
    RETURN v_generation;
END;
$$;
COMMENT ON FUNCTION poky.lease IS
'The generation under which a cache may use its copies for p_seconds (at most 300) from when it asked; null is no. PK400.';

CREATE OR REPLACE FUNCTION poky.suspend_node(p_node text, p_hold boolean DEFAULT false)
RETURNS SETOF poky.node
LANGUAGE plpgsql SECURITY DEFINER ROWS 1
SET search_path = poky, pg_temp
AS $$
BEGIN
    UPDATE poky.cache_node
    SET
        suspended_at = clock_timestamp(),
        generation = gen_random_uuid(),
        drained = false,
        relapses = CASE
            WHEN reinstated_at > clock_timestamp() - make_interval(secs => 4 * lease_seconds)
                THEN least(relapses + 1, 5)
            ELSE 0
        END
    WHERE name = p_node AND suspended_at IS NULL;
    IF p_hold THEN
        UPDATE poky.cache_node SET held = true WHERE name = p_node;
    END IF;
    RETURN QUERY SELECT * FROM poky.nodes() AS n WHERE n.name = p_node;
END;
$$;
COMMENT ON FUNCTION poky.suspend_node IS
'Grant a cache no more leases, unless that was done before; no row if there is no such cache. Unless it is drained, what it missed is to be acknowledged only when its leases have run out.';

CREATE OR REPLACE FUNCTION poky.drain_node(p_node text, p_generation text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
BEGIN
    UPDATE poky.cache_node SET drained = true
    WHERE name = p_node AND generation = p_generation AND suspended_at IS NOT NULL;
    RETURN FOUND;
END;
$$;
COMMENT ON FUNCTION poky.drain_node IS
'Say that the leases of a suspended cache have run out: for those who waited for it by a clock that is never set.';

CREATE OR REPLACE FUNCTION poky.end_node(p_node text, p_generation text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
BEGIN
    -- Without a lease no pause follows either (poky.reinstate_node): it kept no writer waiting.
    UPDATE poky.cache_node SET drained = true, lease_seconds = 0
    WHERE name = p_node AND generation = p_generation AND suspended_at IS NOT NULL;
    RETURN FOUND;
END;
$$;
COMMENT ON FUNCTION poky.end_node IS
'Say that a suspended cache had ended by then, and its leases with it.';

CREATE OR REPLACE FUNCTION poky.reinstate_node(p_node text, p_generation text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
BEGIN
    UPDATE poky.cache_node
    SET
        suspended_at = NULL,
        drained = false,
        lease_seconds = 0,
        reinstated_at = clock_timestamp()
    WHERE name = p_node AND generation = p_generation AND drained AND NOT held
        -- A cache that only some instances can reach would make their writers wait again and again.
        AND suspended_at
        <= clock_timestamp() - make_interval(secs => lease_seconds * (2 ^ relapses - 1));
    RETURN FOUND;
END;
$$;
COMMENT ON FUNCTION poky.reinstate_node IS
'Let a cache take part again, unless its pause is not over or people hold it; whether it does now.';

CREATE OR REPLACE FUNCTION poky.resume_node(p_node text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
BEGIN
    UPDATE poky.cache_node SET held = false WHERE name = p_node;
    RETURN FOUND;
END;
$$;
COMMENT ON FUNCTION poky.resume_node IS
'Hold a cache no longer: it is reinstated once it answers. False if there is no such cache.';

CREATE OR REPLACE FUNCTION poky.remove_node(p_node text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
BEGIN
    DELETE FROM poky.cache_node WHERE name = p_node AND drained;
    IF FOUND THEN
        RETURN true;
    END IF;
    IF EXISTS (SELECT FROM poky.cache_node WHERE name = p_node) THEN
        RAISE EXCEPTION USING
            ERRCODE = 'PK409',
            HINT = 'cache_leased',
            MESSAGE = format('The cache %s may hold a lease: suspend it and wait first.', p_node);
    END IF;
    RETURN false;
END;
$$;
COMMENT ON FUNCTION poky.remove_node IS
'Forget a cache that is suspended and drained. False if there is no such cache; PK409 if it may hold a lease.';

CREATE OR REPLACE FUNCTION poky.renew_generations() RETURNS double precision
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
DECLARE
    v_seconds double precision;
BEGIN
    UPDATE poky.cache_node SET generation = gen_random_uuid() WHERE suspended_at IS NULL;
    SELECT max(lease_seconds) INTO v_seconds FROM poky.cache_node WHERE NOT drained;
    RETURN coalesce(v_seconds, 0);
END;
$$;
COMMENT ON FUNCTION poky.renew_generations IS
'Let every cache forget all it has. The longest lease that may be out: once it has passed, no old copy is in use.';

CREATE OR REPLACE FUNCTION poky.unconfirmed(p_seconds double precision, p_limit integer)
RETURNS SETOF poky.change
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
    SELECT o.id, o.bucket, o.key FROM poky._outbox AS o
    WHERE o.created_at <= clock_timestamp() - make_interval(secs => p_seconds)
    ORDER BY o.id LIMIT p_limit
$$;
COMMENT ON FUNCTION poky.unconfirmed IS
'The oldest changes whose purge has been unconfirmed for this long: their writer died, or is not the service.';

CREATE OR REPLACE FUNCTION poky.confirm(p_ids bigint []) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
BEGIN
    -- Nothing is lost if this is: another purge does no harm.
    PERFORM set_config('synchronous_commit', 'off', true);
    DELETE FROM poky._outbox WHERE id = ANY (p_ids);
    UPDATE poky.cache_node SET purged_at = clock_timestamp()
    WHERE suspended_at IS NULL
        AND coalesce(purged_at < clock_timestamp() - interval '5 seconds', true);
END;
$$;
COMMENT ON FUNCTION poky.confirm IS
'Every cache has heard of these changes, or was suspended since.';
