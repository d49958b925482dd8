-- Statements on the table of one bucket, or of all: templates for bucket_functions.sql.
-- They are for format(): %1$I is the table. In poky._select_objects %2$s says which bucket, by a
-- constant id where there is one, because a join by name costs a read a tenth of its time; %3$s are the keys.

CREATE OR REPLACE FUNCTION poky._select_objects() RETURNS text
LANGUAGE sql IMMUTABLE
AS $template$
    SELECT $$
    SELECT
        o.key, o.revision, o.hash, o.modified_at,
        greatest(o.written_at, o.modified_at, b.unsettled_until), o.content_type, o.value,
        o.content_encoding,
        poky._expiry_second(o.expires_at),
        poky._milliseconds_left(o.expires_at)
    FROM poky.bucket AS b CROSS JOIN poky.%1$I AS o
    WHERE %2$s AND o.key = ANY (%3$s)
        AND (o.expires_at IS NULL OR o.expires_at > statement_timestamp())
    $$
$template$;
COMMENT ON FUNCTION poky._select_objects IS
'Template: the objects of a bucket that have one of the keys, in the columns of poky.object.';

CREATE OR REPLACE FUNCTION poky._is_bucket(p_id integer) RETURNS text
LANGUAGE sql IMMUTABLE
AS $$
    SELECT format('b.id = %1$s AND o.bucket_id = %1$s', p_id)
$$;
COMMENT ON FUNCTION poky._is_bucket IS
'For poky._select_objects: the objects of the bucket with this id.';

CREATE OR REPLACE FUNCTION poky._update_variables() RETURNS text
LANGUAGE sql IMMUTABLE
AS $template$
    SELECT $$
    v_now bigint := floor(date_part('epoch', clock_timestamp()));
    v_hash text := coalesce(p_hash, encode(substr(sha256(p_value), 1, 4), 'hex'));
    v_revision bigint;
    v_modified_at bigint;
    v_expires_at timestamptz;
    v_expired_at timestamptz;
    $$
$template$;
COMMENT ON FUNCTION poky._update_variables IS 'Template: what poky._update_object declares.';

CREATE OR REPLACE FUNCTION poky._update_object() RETURNS text
LANGUAGE sql IMMUTABLE
AS $template$
    SELECT $$
    IF p_attributes IS NOT NULL THEN
        v_expires_at := poky._expires_at(p_attributes);
    END IF;
    -- PostgreSQL draws the revision once it has found the row. If another transaction replaces the
    -- row first, it evaluates both again: the conditions and the revision.
    UPDATE poky.%1$I AS o SET
        revision = nextval('poky.revision'),
        hash = v_hash,
        modified_at = coalesce(p_modified_at, o.modified_at),
        written_at = v_now,
        content_type = p_content_type,
        content_encoding = p_attributes ->> 'content_encoding',
        value = p_value
    WHERE o.bucket_id = p_id AND o.key = p_key
        AND poky._matches(p_if_match, o.revision, o.hash, o.modified_at)
        AND (o.expires_at IS NULL OR o.expires_at > clock_timestamp())
        AND (p_modified_at IS NULL OR p_modified_at >= o.modified_at)
        AND (
            p_if_none_match IS NULL
            OR NOT poky._matches(p_if_none_match, o.revision, o.hash, o.modified_at)
        )
    -- expires_at is as it was: it is compared again now that the row is locked.
    RETURNING o.revision, o.modified_at, o.expires_at
    INTO v_revision, v_modified_at, v_expired_at;
    IF v_revision IS NULL THEN
        RETURN (
            NULL, 'rejected', NULL, NULL, NULL, CASE WHEN p_has_caches THEN 0 END, NULL
        )::poky.outcome;
    END IF;
    IF v_expired_at <= clock_timestamp() THEN
        DELETE FROM poky.%1$I AS o WHERE o.bucket_id = p_id AND o.key = p_key;
        PERFORM poky._settle_later(p_id, v_modified_at);
        RETURN (
            NULL, 'rejected', NULL, NULL, NULL, CASE WHEN p_has_caches THEN 0 END, NULL
        )::poky.outcome;
    END IF;
    IF v_expired_at IS NOT NULL OR v_expires_at IS NOT NULL THEN
        UPDATE poky.%1$I AS o SET expires_at = v_expires_at
        WHERE o.bucket_id = p_id AND o.key = p_key;
    END IF;
    IF v_expires_at IS NOT NULL THEN
        PERFORM poky._queue_expiry(p_id, p_key, v_expires_at);
    END IF;
    RETURN (
        NULL, 'updated', v_revision, v_hash, v_modified_at,
        CASE WHEN p_has_caches THEN poky._announce(p_bucket, p_key, v_revision) END,
        ceil(extract(epoch FROM v_expires_at))
    )::poky.outcome;
    $$
$template$;
COMMENT ON FUNCTION poky._update_object IS
'Template: replace an object if p_if_match and the other conditions hold.';

CREATE OR REPLACE FUNCTION poky._delete_variables() RETURNS text
LANGUAGE sql IMMUTABLE
AS $template$
    SELECT $$
    v_outcome text := CASE WHEN p_if_match IS NULL THEN 'missing' ELSE 'rejected' END;
    v_modified_at bigint;
    v_expires_at timestamptz;
    $$
$template$;
COMMENT ON FUNCTION poky._delete_variables IS 'Template: what poky._delete_object declares.';

CREATE OR REPLACE FUNCTION poky._delete_object() RETURNS text
LANGUAGE sql IMMUTABLE
AS $template$
    SELECT $$
    IF p_if_none_match IS NOT NULL OR p_unmodified_since IS NOT NULL THEN
        -- Locked, to tell an object that is missing from one that does not match.
        SELECT o.expires_at INTO v_expires_at FROM poky.%1$I AS o
        WHERE o.bucket_id = p_id AND o.key = p_key FOR UPDATE;
        IF NOT FOUND OR v_expires_at <= clock_timestamp() THEN
            RETURN (
                NULL, v_outcome, NULL, NULL, NULL, CASE WHEN p_has_caches THEN 0 END, NULL
            )::poky.outcome;
        END IF;
        v_outcome := 'rejected';
    END IF;
    DELETE FROM poky.%1$I AS o
    WHERE o.bucket_id = p_id AND o.key = p_key
        AND (
            p_if_match IS NULL
            OR poky._matches(p_if_match, o.revision, o.hash, o.modified_at)
        )
        AND (
            p_if_none_match IS NULL
            OR NOT poky._matches(p_if_none_match, o.revision, o.hash, o.modified_at)
        )
        AND (p_unmodified_since IS NULL OR p_unmodified_since >= o.modified_at)
    RETURNING o.modified_at, o.expires_at INTO v_modified_at, v_expires_at;
    IF v_modified_at IS NULL THEN
        RETURN (
            NULL, v_outcome, NULL, NULL, NULL, CASE WHEN p_has_caches THEN 0 END, NULL
        )::poky.outcome;
    END IF;
    IF v_expires_at IS NOT NULL THEN
        DELETE FROM poky._expiry AS e WHERE e.bucket_id = p_id AND e.key = p_key;
    END IF;
    IF p_is_last THEN
        PERFORM poky._settle_later(p_id, v_modified_at);
    END IF;
    IF v_expires_at <= clock_timestamp() THEN
        -- It was missing already. Its date is told for poky._settle_later.
        RETURN (
            NULL, CASE WHEN p_if_match IS NULL THEN 'missing' ELSE 'rejected' END,
            NULL, NULL, v_modified_at, CASE WHEN p_has_caches THEN 0 END, NULL
        )::poky.outcome;
    END IF;
    RETURN (
        NULL, 'deleted', NULL, NULL, v_modified_at,
        CASE WHEN p_has_caches THEN poky._announce(p_bucket, p_key, nextval('poky.revision')) END,
        NULL
    )::poky.outcome;
    $$
$template$;
COMMENT ON FUNCTION poky._delete_object IS
'Template: delete an object if the conditions hold; p_is_last: the transaction locks no other object after it.';
