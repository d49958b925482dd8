"""The server and its clients, as PostgreSQL's own views show them to every role."""

from typing import Any, NamedTuple

from poky.store.pool import Pool

# One row. Instances are the sessions that bear our name; times are seconds since 1970.
_STATEMENT = """
SELECT current_setting('server_version'),
       extract(epoch FROM pg_postmaster_start_time())::bigint,
       pg_database_size(current_database()),
       (SELECT coalesce(json_agg(row_to_json(each)), '[]')
          FROM (SELECT substr(application_name, 6) AS name, host(client_addr) AS address,
                       count(*) AS connections
                  FROM pg_stat_activity
                 WHERE starts_with(application_name, 'poky ')
                   AND datname = current_database() AND application_name <> 'poky migrate'
                 GROUP BY 1, 2 ORDER BY 1, 2) AS each),
       (SELECT coalesce(json_agg(application_name ORDER BY application_name), '[]')
          FROM pg_stat_replication),
       current_setting('archive_mode') <> 'off',
       (SELECT extract(epoch FROM last_archived_time)::bigint FROM pg_stat_archiver),
       (SELECT extract(epoch FROM last_failed_time)::bigint FROM pg_stat_archiver
         WHERE last_failed_time > coalesce(last_archived_time, '-infinity'))
"""

_INSTANCES = """
SELECT DISTINCT substr(application_name, 6)
  FROM pg_stat_activity
 WHERE starts_with(application_name, 'poky ')
   AND datname = current_database() AND application_name <> 'poky migrate'
"""


class Activity(NamedTuple):
    """The server that answered, and who else is connected to this database."""

    version: str
    started_at: int
    bytes: int
    instances: list[dict[str, Any]]  #: name, address (None: on the same machine), connections
    standbys: list[str]
    is_archiving: bool
    archived_at: int | None
    archive_failed_at: int | None  #: None once a later segment was archived


class Activities(Pool):
    """What an overview shows of the database."""

    def activity(self) -> Activity:
        """The server and its clients now."""
        return Activity._make(self._read_freely(_STATEMENT, ())[0])

    def instances(self) -> list[str]:
        """The instances that are connected now, by name."""
        return [str(name) for (name,) in self._read_freely(_INSTANCES, ())]
