"""Observe the instances of a host: what runs, which release, and whether it runs what is on disk.

Reads only: systemd, /proc, the credentials that systemd handed over, and ``/status``.
``stale`` names what changed on disk since the process read it; a restart is the cure.
"""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.poky_http import read_status

PROPERTIES = (
    "ActiveState",
    "MainPID",
    "NRestarts",
    "NeedDaemonReload",
    "FragmentPath",
    "DropInPaths",
    "Environment",
    "ExecMainStartTimestamp",
)


def show_unit(unit: str) -> dict[str, str]:
    """What systemd knows of a unit; times are Unix seconds."""
    command = ["systemctl", "show", "--timestamp=unix", unit, *(f"-p{name}" for name in PROPERTIES)]
    shown = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)


def read_settings(text: str) -> dict[str, str]:
    """The assignments of an environment file as systemd reads them."""
    words = shlex.split(text, comments=True)
    return dict(word.split("=", 1) for word in words if "=" in word)


def stale_settings(environment_file: Path, pid: int, of_the_unit: str = "") -> list[str]:
    """Names of the settings that differ between the file and the running process.

    Those that the unit itself sets are not in the file.
    """
    try:
        wanted = read_settings(environment_file.read_text())
        raw = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return []
    running = dict(word.split("=", 1) for word in raw.split("\0") if "=" in word)
    ours = {name for name in running if name.startswith("POKY_")} - set(read_settings(of_the_unit))
    return sorted(name for name in ours | set(wanted) if running.get(name) != wanted.get(name))


def stale_credentials(directory: Path, unit: str) -> list[str]:
    """Names of the credentials that differ between the disk and the running unit."""
    stale = []
    for loaded in sorted(Path("/run/credentials", unit).glob("*")):
        on_disk = directory / loaded.name
        if not on_disk.is_file() or on_disk.read_bytes() != loaded.read_bytes():
            stale.append(loaded.name)
    return stale


def stale_units(shown: dict[str, str]) -> list[str]:
    """Names of the unit files that are newer than the process."""
    started = shown.get("ExecMainStartTimestamp", "").lstrip("@")
    files = [shown.get("FragmentPath", ""), *shown.get("DropInPaths", "").split()]
    if shown.get("NeedDaemonReload") == "yes":
        return ["unit files not loaded"]
    if not started.isdigit():
        return []
    paths = [Path(name) for name in files if name]
    return [
        path.name for path in paths if path.exists() and path.stat().st_mtime > int(started) + 1
    ]


def running_release(pid: int, home: Path) -> str:
    """The release whose interpreter a process runs, by its command line; "" for a stranger."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""
    found = re.match(re.escape(f"{home}/releases/") + r"([^/\0]+)/", command)
    return found[1] if found else ""


def observe(
    port: int, home: Path, listen: str, environment_file: Path, credentials: Path
) -> dict[str, Any]:
    """All there is to say about one instance."""
    unit = f"poky@{port}.service"
    shown = show_unit(unit)
    pid = int(shown.get("MainPID") or 0)
    stale: list[str] = []
    if pid:
        stale += stale_units(shown)
        stale += stale_settings(environment_file, pid, shown.get("Environment", ""))
        stale += stale_credentials(credentials, unit)
    return {
        "port": port,
        "active": shown.get("ActiveState", "inactive"),
        "pid": pid,
        "release": running_release(pid, home) if pid else "",
        "restarts": int(shown.get("NRestarts") or 0),
        "stale": stale,
        "status": read_status(listen, port) if pid else None,
    }


def link(path: Path) -> str:
    """The name that a link of the layout points to; "" if there is none."""
    return path.readlink().name if path.is_symlink() else ""


def main() -> None:
    """Report instances, releases and links of this host; never changes anything."""
    module = AnsibleModule(
        argument_spec={
            "ports": {"type": "list", "elements": "int", "required": True},
            "listen": {"type": "str", "required": True},
            "home": {"type": "path", "required": True},
            "environment_file": {"type": "path", "required": True},
            "credentials": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    given = module.params
    home = Path(given["home"])
    instances = [
        observe(
            port,
            home,
            given["listen"],
            Path(given["environment_file"]),
            Path(given["credentials"]),
        )
        for port in given["ports"]
    ]
    releases = sorted(path.parent.name for path in home.glob("releases/*/RELEASE.json"))
    unfinished = sorted(path.parent.name for path in home.glob("releases/*/UNFINISHED"))
    module.exit_json(
        changed=False,
        instances=instances,
        current=link(home / "current"),
        previous=link(home / "previous"),
        releases=[name for name in releases if name not in unfinished],
        unfinished=unfinished,
    )


if __name__ == "__main__":
    main()
