"""The VCL as a test runs it: the role's files, or sabotaged, and values with the test's ports.

    python -m tests.vcl.values --into DIRECTORY --service 8081 --lease 10081

writes them, as each .vtc does; without probes, which few servers' scripts could expect.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import jinja2
import yaml

from tests.vcl.sabotage import SABOTAGES, sabotaged

ROLE = Path(__file__).resolve().parents[2] / "roles" / "varnish"


def write(into: Path, values: str, vcl: str = "") -> Path:
    """Write all that Varnish loads into a directory; ``vcl`` replaces poky.vcl. Return its path."""
    for file in (ROLE / "files").glob("poky*.vcl"):
        (into / file.name).write_text(file.read_text())
    if vcl:
        (into / "poky.vcl").write_text(vcl)
    (into / "poky_values.vcl").write_text(values)
    return into / "poky.vcl"


def values(
    *,
    service: Sequence[int],
    lease: Sequence[int],
    mode: str = "lease",
    access: str = "open",
    origins: Sequence[str] = (),
    failures: int = 0,
    unverified: int = 0,
    ttl: int = 14400,
    largest_kept: int = 32_000_000,
    small_room: int = 900_000,
    lease_timeout: float = 2,
    write_timeout: float = 15,
    followers: int = 10,
    probe: bool = True,
) -> str:
    """Return the text of poky_values.vcl for backends on the loopback's ports."""
    template = jinja2.Environment(
        trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    ).from_string((ROLE / "templates" / "poky_values.vcl.j2").read_text())
    text = template.render(
        ansible_managed="made by tests/vcl/values.py",
        varnish_service_backends=[
            {"name": f"service_{port}", "host": "127.0.0.1", "port": port} for port in service
        ],
        varnish_lease_backends=[
            {"name": f"lease_{port}", "host": "127.0.0.1", "port": port} for port in lease
        ],
        varnish_mode=mode,
        varnish_access=access,
        varnish_cors_origins=origins,
        varnish_failed_authorizations=failures,
        _varnish_origins=origins,
        varnish_serve_unverified=unverified,
        varnish_object_ttl=ttl,
        varnish_largest_kept=largest_kept,
        _varnish_small_room=small_room,
        varnish_lease_timeout=lease_timeout,
        varnish_write_timeout=write_timeout,
        varnish_followers=followers,
    )
    if not probe:
        text = re.sub(r"probe poky_status \{.*?\}|\.probe = poky_status;", "", text, flags=re.S)
    return text


def parameters() -> list[str]:
    """Return the role's parameters of varnishd as its options; the sizes of thread pools apart."""
    chosen = yaml.safe_load((ROLE / "vars" / "main.yml").read_text())["_varnish_parameters"]
    return [
        word
        for name, value in chosen.items()
        if "{{" not in str(value)
        for word in ("-p", f"{name}={value}")
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.vcl.values")
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("--sabotage", choices=SABOTAGES)
    parser.add_argument("--service", type=int, nargs="+", required=True)
    parser.add_argument("--lease", type=int, nargs="+", required=True)
    parser.add_argument("--mode", default="lease")
    parser.add_argument("--access", choices=["open", "tokens"], default="open")
    parser.add_argument("--origins", nargs="*", default=[])
    parser.add_argument("--failures", type=int, default=0)
    parser.add_argument("--unverified", type=int, default=0)
    parser.add_argument("--ttl", type=int, default=14400)
    parser.add_argument("--largest-kept", type=int, default=32_000_000)
    parser.add_argument("--lease-timeout", type=float, default=2)
    parser.add_argument("--write-timeout", type=float, default=15)
    parser.add_argument("--followers", type=int, default=10)
    parser.add_argument("--probe", action="store_true")
    arguments = vars(parser.parse_args())
    into, sabotage = arguments.pop("into"), arguments.pop("sabotage")
    write(into, values(**arguments))
    if sabotage:
        file = into / SABOTAGES[sabotage].file
        file.write_text(sabotaged(file.read_text(), sabotage))


if __name__ == "__main__":
    main()
