-- Who there is. Applied when one of them is missing, by somebody who may create roles; everything
-- else is done as poky_owner. Passwords are the administrator's business: ALTER ROLE ... PASSWORD.

DO $$
DECLARE
    v_role record;
BEGIN
    FOR v_role IN
        SELECT * FROM (VALUES
            ('poky_owner', 'NOLOGIN'),   -- owns the schema; poky migrate becomes it
            ('poky_service', 'LOGIN'),   -- calls the functions
            ('poky_reader', 'NOLOGIN'),  -- calls those that only read
            ('poky_monitor', 'NOLOGIN')  -- sees how it is, but no object
        ) AS r (name, may_log_in)
        WHERE to_regrole(r.name) IS NULL
    LOOP
        BEGIN
            EXECUTE format('CREATE ROLE %I %s', v_role.name, v_role.may_log_in);
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;  -- roles belong to all databases: another one's migrate was faster
        END;
    END LOOP;
    EXECUTE format('GRANT CREATE ON DATABASE %I TO poky_owner', current_database());
END;
$$;
