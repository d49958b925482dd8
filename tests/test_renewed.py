"""A certificate is renewed under load, as playbooks/certificates.yml does it: no request fails."""

from __future__ import annotations

import hashlib
import http.client
import itertools
import os
import shutil
import signal
import ssl
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.service import wait_until
from tests.support.chain import Chain

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

_CONTEXT = ssl._create_unverified_context()
_CLOSED = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError, ssl.SSLEOFError)


class _Clients:
    """Write and read what they wrote, on connections that they keep.

    A connection that nginx has closed between two requests is opened again, once for a request, as
    clients do (RFC 9110, 9.2.2).
    """

    def __init__(self, port: int, count: int = 4) -> None:
        self.requests = self.reopened = 0
        self.failed: list[str] = []
        self._port = port
        self._over = threading.Event()
        self._counting = threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(count)]

    def __enter__(self) -> _Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)

    def _run(self, number: int) -> None:
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self._port, timeout=30, context=_CONTEXT
        )
        path = f"/kv/b/k{number}"
        for count in itertools.count():
            if self._over.is_set():
                break
            value = f"{number} {count}"
            for method, body, right in (("PUT", value, None), ("GET", None, value)):
                try:
                    status, said = self._ask(connection, method, path, body)
                except (OSError, http.client.HTTPException) as error:
                    self.failed.append(f"{method}: {error!r}")
                    connection.close()
                    continue
                if status != 200 or (right and said != right):
                    self.failed.append(f"{method}: {status} {said}")
        connection.close()

    def _ask(
        self, connection: http.client.HTTPSConnection, method: str, path: str, body: str | None
    ) -> tuple[int, str]:
        with self._counting:
            self.requests += 1
        try:
            return _asked(connection, method, path, body)
        except _CLOSED:
            with self._counting:
                self.reopened += 1
            connection.close()
            return _asked(connection, method, path, body)


def _asked(
    connection: http.client.HTTPSConnection, method: str, path: str, body: str | None
) -> tuple[int, str]:
    connection.request(method, path, body)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def _issue(folder: Path) -> str:
    """Another key and certificate in place of those that are there; its fingerprint."""
    new = folder / "new"
    new.mkdir()
    files = ["-keyout", new / "key.pem", "-out", new / "certificate.pem"]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*command, *files], check=True, capture_output=True)
    for name in ("certificate.pem", "key.pem"):
        (new / name).rename(folder / name)
    shutil.rmtree(new)
    pem = (folder / "certificate.pem").read_text()
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()


def _served(port: int) -> str:
    pem = ssl.get_server_certificate(("127.0.0.1", port))
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()


def test_a_certificate_is_renewed_and_no_request_fails(tmp_path: Path) -> None:
    with Chain(tmp_path, instances=2) as chain:
        chain.poky("bucket", "create", "b")
        nginx = chain.folder / "nginx"
        with _Clients(chain.https_port) as clients:
            for _ in range(5):
                before = clients.requests
                wait_until(lambda: clients.requests > before + 100, 60, "clients go on")  # noqa: B023
                new = _issue(nginx)
                os.kill(int((nginx / "pid").read_text()), signal.SIGHUP)
                wait_until(lambda: _served(chain.https_port) == new, 30, "it is served")  # noqa: B023
            time.sleep(1)
    print(f"{clients.requests} requests, {clients.reopened} on a connection opened again")
    assert clients.failed == []
    assert clients.reopened >= 1
