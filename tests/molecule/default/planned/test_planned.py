"""A plan for a machine on which nothing is installed has touched nothing."""

from __future__ import annotations

from deployment import Deployment, machine

# What every machine writes when it boots, and what Ansible writes to find its way.
OF_NO_CONCERN = (
    *("/var/log", "/var/tmp", "/tmp", "/run", "/root", "/var/lib/systemd", "/var/cache"),
    *(
        "/etc/ssh/ssh_host_",
        "/etc/machine-id",
        "/var/lib/dbus/machine-id",
        "/etc/.pwd.lock",
        "/etc/hosts",
        "/etc/resolv.conf",
    ),
)


def test_the_plan_has_changed_nothing(deployment: Deployment) -> None:
    for name in deployment.groups["service"]:
        touched = [line.split(" ", 1)[1] for line in machine("podman", "diff", name).splitlines()]
        assert touched
        files = [
            path
            for path in touched
            if not path.startswith(OF_NO_CONCERN) and not _is_parent(path, touched)
        ]
        assert files == []


def _is_parent(path: str, touched: list[str]) -> bool:
    """A directory is listed because of what is in it."""
    return any(other.startswith(f"{path.rstrip('/')}/") for other in touched)
