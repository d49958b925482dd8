"""Observe daemons that serve with us: whether they run, and run what is on disk.

Reads only. Varnish can show the VCL that it has loaded; nginx cannot, so its workers' start tells
whether a file is newer; PostgreSQL knows which settings wait for a restart.
"""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule


def output(*command: str) -> str:
    """What a command says; "" if it fails or is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def loaded_sources(shown: str) -> dict[str, str]:
    """``vcl.show -v`` as {file name: source}; what has no file (the built-in VCL) is left out."""
    sources = {}
    parts = re.split(r"^// VCL\.SHOW \d+ \d+ (\S+)\n", shown, flags=re.MULTILINE)
    for name, source in zip(parts[1::2], parts[2::2], strict=True):
        if name.startswith("/"):
            sources[name] = source
    return sources


def stale_vcl() -> list[str]:
    """The files whose loaded text is not the one on disk."""
    listed = [line.split() for line in output("varnishadm", "vcl.list").splitlines()]
    active = [words[4] for words in listed if words and words[0] == "active"]
    if not active:
        return ["no VCL is active"]
    stale = []
    for file, source in loaded_sources(output("varnishadm", "vcl.show", "-v", active[0])).items():
        path = Path(file)
        if not path.is_file() or path.read_text().strip() != source.strip():
            stale.append(f"{file} is not the one loaded")
    return stale


def started(pid: str) -> float:
    """When a process started, as Unix time."""
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19])
    boot = re.search(r"^btime (\d+)", Path("/proc/stat").read_text(), re.MULTILINE)
    if not boot:
        raise ValueError("/proc/stat has no btime")
    return int(boot[1]) + ticks / os.sysconf("SC_CLK_TCK")


def stale_nginx(pid: str) -> list[str]:
    """The files that are newer than every worker."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    if not children:
        return []
    newest = max(started(child) for child in children)
    configuration = output("nginx", "-T")
    names = re.findall(r"^# configuration file (\S+):$", configuration, re.MULTILINE)
    names += re.findall(r"\bssl_certificate(?:_key)?\s+([^;\s]+)", configuration)
    paths = [Path(name) for name in dict.fromkeys(names)]
    return [
        f"{path} is newer than nginx"
        for path in paths
        if path.is_file() and path.stat().st_mtime > newest + 2
    ]


def certificates(unit: str) -> dict[str, str]:
    """When its certificates end: {file: the openssl's date, or "" if it is unreadable}."""
    names: list[str] = []
    if unit.startswith("nginx"):
        names = re.findall(r"\bssl_certificate\s+([^;\s]+)", output("nginx", "-T"))
    elif unit.startswith("postgresql"):  # but not Debian's, which no client verifies
        query = (
            "SELECT setting FROM pg_settings WHERE name = 'ssl_cert_file' "
            "AND setting NOT LIKE '%snakeoil%' AND current_setting('ssl') = 'on'"
        )
        names = output("runuser", "-u", "postgres", "--", "psql", "-XAtc", query).split()
    ends = {}
    for name in dict.fromkeys(names):
        said = output("openssl", "x509", "-noout", "-enddate", "-in", name)
        ends[name] = said.strip().removeprefix("notAfter=")
    return ends


def stale_postgresql() -> list[str]:
    """The settings that wait for a restart, the lines that were refused, the files not read."""
    query = (
        "SELECT name || ' waits for a restart' FROM pg_settings WHERE pending_restart UNION ALL "
        "SELECT sourcefile || ': ' || error FROM pg_file_settings WHERE error IS NOT NULL "
        "AND error <> 'setting could not be applied' UNION ALL "
        "SELECT file || ' is newer than PostgreSQL' FROM (SELECT sourcefile FROM pg_file_settings "
        "UNION SELECT current_setting('hba_file')) AS f (file) "
        "WHERE (pg_stat_file(file)).modification > pg_conf_load_time()"
    )
    return output("runuser", "-u", "postgres", "--", "psql", "-XAtc", query).splitlines()


def members() -> list[dict[str, Any]]:
    """The members of PostgreSQL's cluster, as this one's Patroni sees them; none: unknown."""
    said = output("patronictl", "--config-file", "/etc/patroni/config.yml", "list", "-f", "json")
    found: list[dict[str, Any]] = json.loads(said) if said.startswith("[") else []
    return found


def ill_etcd() -> list[str]:
    """Whether this member of etcd finds a quorum."""
    tls = "/etc/etcd/tls"
    said = output(
        *("etcdctl", f"--cacert={tls}/ca.pem", f"--cert={tls}/member.pem"),
        *(f"--key={tls}/member.key", "--endpoints=https://127.0.0.1:2379", "endpoint", "health"),
    )
    return [] if said or not Path(tls).is_dir() else ["it does not find a quorum"]


def matching(pattern: str) -> list[str]:
    """The units of a pattern that systemd knows; the pattern itself if there are none."""
    listed = output("systemctl", "list-units", "--all", "--plain", "--no-legend", pattern)
    return [line.split()[0] for line in listed.splitlines()] or [pattern]


def observe(unit: str) -> dict[str, Any]:
    """One daemon: whether it runs, and what on disk it has not read."""
    names = ("ActiveState", "MainPID", "NeedDaemonReload")
    shown = output("systemctl", "show", unit, *(f"-p{name}" for name in names))
    said = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    active = said.get("ActiveState", "unknown")
    found: list[dict[str, Any]] = []
    stale = ["unit files not loaded"] if said.get("NeedDaemonReload") == "yes" else []
    if active == "active":
        if unit.startswith("varnish"):
            stale += stale_vcl()
        elif unit.startswith("nginx"):
            stale += stale_nginx(said["MainPID"])
        elif unit.startswith("postgresql"):
            stale += stale_postgresql()
        elif unit.startswith("patroni"):
            found = members()
            stale += [] if found else ["it does not know its cluster"]
        elif unit.startswith("etcd"):
            stale += ill_etcd()
    ends = certificates(unit)
    seen = {"unit": unit, "active": active, "stale": stale, "certificates": ends}
    return {**seen, "members": found} if found else seen


def main() -> None:
    """Report on the units of the given patterns; never changes anything."""
    module = AnsibleModule(
        argument_spec={"units": {"type": "list", "elements": "str", "required": True}},
        supports_check_mode=True,
    )
    try:
        units = [unit for pattern in module.params["units"] for unit in matching(pattern)]
        daemons = [observe(unit) for unit in units]
    except (OSError, ValueError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, daemons=daemons)


if __name__ == "__main__":
    main()
