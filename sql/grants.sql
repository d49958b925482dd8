-- The privileges. The roles exist already (roles.sql), and only the owner may use tables.

REVOKE ALL ON SCHEMA poky FROM public;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA poky FROM public;

-- The service may call the interface and nothing else: no table, no DDL.
GRANT USAGE ON SCHEMA poky TO poky_service, poky_reader, poky_monitor;
DO $$
DECLARE
    v_function regprocedure;
BEGIN
    FOR v_function IN
        SELECT p.oid FROM pg_catalog.pg_proc AS p
        WHERE p.pronamespace = 'poky'::regnamespace AND p.proname NOT LIKE '\_%'
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO poky_service', v_function);
    END LOOP;
END;
$$;

-- Tokens and public buckets are the administrator's: the service only decides by them.
REVOKE EXECUTE ON FUNCTION
poky.create_token, poky.change_token, poky.rotate_token, poky.revoke_token, poky.tokens,
poky.publish_bucket, poky.keep_changes, poky.after_restore
FROM poky_service;
-- It reads a table of the session's own, and would pass by what an instance holds.
REVOKE EXECUTE ON FUNCTION poky.import_staged FROM poky_service;

GRANT EXECUTE ON FUNCTION
poky.get, poky.get_many, poky.list, poky.export, poky.buckets, poky.status TO poky_reader;
GRANT EXECUTE ON FUNCTION poky.buckets, poky.status TO poky_monitor;
