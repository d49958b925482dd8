-- Tokens, public buckets, and the policy under which decisions about them hold (docs/security.md).

CREATE OR REPLACE FUNCTION poky._check_grants(p_grants text []) RETURNS void
LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
    v_grant text;
BEGIN
    FOREACH v_grant IN ARRAY p_grants LOOP
        IF v_grant !~ '^(read|write|delete|list|admin):[A-Za-z0-9_.,-]*\*?$'
            OR v_grant ~ ':$' OR length(v_grant) > 264 THEN
            RAISE EXCEPTION USING
                ERRCODE = 'PK400',
                HINT = 'bad_grant',
                MESSAGE = 'A grant is read, write, delete, list or admin, a colon, and a bucket'
                    ' or the beginning of its name and *.';
        END IF;
    END LOOP;
END;
$$;
COMMENT ON FUNCTION poky._check_grants IS 'PK400 unless every grant is a right and a bucket pattern.';

CREATE OR REPLACE FUNCTION poky._change_policy() RETURNS bigint
LANGUAGE plpgsql
AS $$
BEGIN
    UPDATE poky.policy SET tag = gen_random_uuid(), revision = nextval('poky.revision');
    -- An empty key, so that the sweeper of any release makes caches drop everything.
    RETURN CASE
        WHEN EXISTS (SELECT FROM poky.cache_node)
            THEN poky._announce('', '', nextval('poky.revision'))
    END;
END;
$$;
COMMENT ON FUNCTION poky._change_policy IS
'Void every decision made so far; the outbox_id, or null where no cache must hear of it.';

CREATE OR REPLACE FUNCTION poky._token_for_update(p_name text) RETURNS poky.token
LANGUAGE plpgsql
AS $$
DECLARE
    v_token poky.token;
BEGIN
    SELECT * INTO v_token FROM poky.token
    WHERE name = p_name AND revoked_at IS NULL FOR UPDATE;
    IF v_token.id IS NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'PK404',
            HINT = 'token_not_found',
            MESSAGE = format('There is no token named %s.', p_name);
    END IF;
    RETURN v_token;
END;
$$;
COMMENT ON FUNCTION poky._token_for_update IS 'The live token of this name, locked. PK404.';

CREATE OR REPLACE FUNCTION poky.require_policy(p_policy text) RETURNS void
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM poky.policy WHERE tag = p_policy) THEN
        RAISE EXCEPTION USING
            ERRCODE = 'PK401',
            HINT = 'policy_changed',
            MESSAGE = 'Tokens or public buckets have changed: decide again.';
    END IF;
END;
$$;
COMMENT ON FUNCTION poky.require_policy IS
'PK401 unless this is the policy now: sent before a request''s own statement, in its transaction.';

CREATE OR REPLACE FUNCTION poky.credential(p_token text, p_bucket text) RETURNS poky.credential
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
    SELECT
        p.tag,
        coalesce(
            (SELECT b.public_read FROM poky.bucket AS b WHERE b.name = p_bucket),
            (SELECT e.public_read FROM poky.placement AS e WHERE e.name = p_bucket), false
        ),
        array_remove(ARRAY[t.hash, t.previous_hash], NULL),
        t.grants,
        extract(epoch FROM t.expires_at - clock_timestamp())::double precision
    FROM poky.policy AS p
    LEFT JOIN poky.token AS t
        ON t.id = p_token AND t.revoked_at IS NULL
        AND (t.expires_at IS NULL OR t.expires_at > clock_timestamp())
$$;
COMMENT ON FUNCTION poky.credential IS
'What a token may do, and whether a bucket is public, with the policy that says so. Empty hashes: no valid token of that id.';

CREATE OR REPLACE FUNCTION poky.create_token(
    p_id text, p_name text, p_hash text, p_grants text [], p_expires_at bigint
)
RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
DECLARE
    v_constraint text;
BEGIN
    PERFORM poky._check_grants(p_grants);
    INSERT INTO poky.token (id, name, hash, grants, expires_at)
    VALUES (p_id, p_name, p_hash, p_grants, to_timestamp(p_expires_at));
    RETURN poky._change_policy();
EXCEPTION
    WHEN unique_violation THEN
        GET STACKED DIAGNOSTICS v_constraint = CONSTRAINT_NAME;
        IF v_constraint = 'token_pkey' THEN
            RAISE EXCEPTION USING
                ERRCODE = 'PK409',
                HINT = 'token_id_used',
                MESSAGE = format('The id of the token %s is that of another token, which may be'
                    ' revoked: generate another one.', p_name);
        END IF;
        RAISE EXCEPTION USING
            ERRCODE = 'PK409',
            HINT = 'token_exists',
            MESSAGE = format('There is a token named %s already: rotate it, or choose another'
                ' name.', p_name);
    WHEN check_violation THEN
        RAISE EXCEPTION USING
            ERRCODE = 'PK400',
            HINT = 'bad_token_name',
            MESSAGE = 'A token''s name is 1 to 128 characters of A-Z a-z 0-9 _ . @ -';
END;
$$;
COMMENT ON FUNCTION poky.create_token IS
'Create a token; times are seconds since 1970, null: it never expires. The outbox_id as in poky.drop_bucket. PK400, PK409.';

CREATE OR REPLACE FUNCTION poky.change_token(
    p_name text, p_id text, p_hash text, p_grants text [], p_expires_at bigint
)
RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
DECLARE
    v_token poky.token := poky._token_for_update(p_name);
BEGIN
    PERFORM poky._check_grants(p_grants);
    UPDATE poky.token SET
        id = coalesce(p_id, v_token.id),
        hash = coalesce(p_hash, v_token.hash),
        previous_hash = CASE WHEN p_hash IS NULL THEN v_token.previous_hash END,
        grants = p_grants,
        expires_at = to_timestamp(p_expires_at)
    WHERE id = v_token.id;
    RETURN poky._change_policy();
END;
$$;
COMMENT ON FUNCTION poky.change_token IS 'Give a token other grants and another end, and where they are not null another id and secret. PK400, PK404.';

CREATE OR REPLACE FUNCTION poky.rotate_token(p_name text, p_hash text, p_keep_previous boolean)
RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
DECLARE
    v_token poky.token := poky._token_for_update(p_name);
BEGIN
    UPDATE poky.token SET
        hash = coalesce(p_hash, v_token.hash),
        previous_hash = CASE
            WHEN p_keep_previous THEN
                CASE WHEN p_hash IS NULL THEN v_token.previous_hash ELSE v_token.hash END
        END
    WHERE id = v_token.id;
    RETURN poky._change_policy();
END;
$$;
COMMENT ON FUNCTION poky.rotate_token IS
'Give a token another secret (null: the same), beside the previous one or in its place. PK404.';

CREATE OR REPLACE FUNCTION poky.revoke_token(p_name text) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
BEGIN
    UPDATE poky.token SET revoked_at = clock_timestamp()
    WHERE name = p_name AND revoked_at IS NULL;
    -- Said again, it is announced again: the first announcement may not have been confirmed.
    IF NOT FOUND AND NOT EXISTS (SELECT FROM poky.token WHERE name = p_name) THEN
        PERFORM poky._token_for_update(p_name);
    END IF;
    RETURN poky._change_policy();
END;
$$;
COMMENT ON FUNCTION poky.revoke_token IS
'End a token for good; it counts as revoked when the caches have confirmed. The same again for one that is revoked. PK404.';

CREATE OR REPLACE FUNCTION poky.publish_bucket(p_bucket text, p_public_read boolean) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
BEGIN
    UPDATE poky.bucket SET public_read = p_public_read WHERE name = p_bucket;
    IF NOT FOUND THEN
        UPDATE poky.placement SET public_read = p_public_read WHERE name = p_bucket;
    END IF;
    IF NOT FOUND THEN
        PERFORM poky._refuse_bucket(p_bucket);
    END IF;
    RETURN poky._change_policy();
END;
$$;
COMMENT ON FUNCTION poky.publish_bucket IS
'Let a bucket''s objects be read without a token, or end that. PK404.';

CREATE OR REPLACE FUNCTION poky.tokens(
    OUT id text, OUT name text, OUT hash text, OUT grants text [], OUT is_rotating boolean,
    OUT created_at bigint, OUT expires_at bigint, OUT last_used_on text
)
RETURNS SETOF record
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
    SELECT
        t.id, t.name, t.hash, t.grants, t.previous_hash IS NOT NULL,
        extract(epoch FROM t.created_at)::bigint, extract(epoch FROM t.expires_at)::bigint,
        t.last_used_on::text
    FROM poky.token AS t WHERE t.revoked_at IS NULL ORDER BY t.name
$$;
COMMENT ON FUNCTION poky.tokens IS 'All tokens that are not revoked, by name; expired ones too.';

CREATE OR REPLACE FUNCTION poky.touch_tokens(p_ids text []) RETURNS void
LANGUAGE sql SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
    UPDATE poky.token SET last_used_on = current_date
    WHERE id = ANY (p_ids) AND last_used_on IS DISTINCT FROM current_date
$$;
COMMENT ON FUNCTION poky.touch_tokens IS 'Record that these tokens were used today.';

CREATE OR REPLACE FUNCTION poky.public_buckets() RETURNS SETOF text
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = poky, pg_temp
AS $$
    SELECT b.name FROM poky.bucket AS b WHERE b.public_read
    UNION
    SELECT e.name FROM poky.placement AS e WHERE e.public_read
    ORDER BY 1
$$;
COMMENT ON FUNCTION poky.public_buckets IS 'The buckets that are read without a token, by name.';
