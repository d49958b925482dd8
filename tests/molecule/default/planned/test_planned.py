"""A plan for a machine on which nothing is installed has touched nothing."""

from __future__ import annotations

from deployment import Deployment, machine

# What every machine writes when it boots, and Ansible to find its way.
OF_NO_CONCERN = tuple(
    """
    /etc/.pwd.lock /etc/.updated /etc/hosts /etc/ld.so.cache /etc/machine-id /etc/resolv.conf
    /etc/ssh/ssh_host_ /root /run /tmp /var/.updated /var/cache /var/lib/dbus/machine-id
    /var/lib/systemd /var/log /var/tmp
    """.split()
)


def test_the_plan_has_changed_nothing(deployment: Deployment) -> None:
    for name in deployment.groups["service"]:
        touched = [
            line.split(" ", 1)[1]
            for line in machine("podman", "diff", machine("container", name).strip()).splitlines()
        ]
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
