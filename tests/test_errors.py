"""What every path has in common: refusals, HEAD, the log (docs/http-api.md)."""

from __future__ import annotations

import json
import socket
import time

import pytest

from tests.service import Client, Service, wait_until


@pytest.mark.parametrize("path", ["/kv", "/kv/", "/kv/b/", "/kv//k", "/multi/b/k", "/none"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
def test_an_unknown_path_is_404(client: Client, method: str, path: str) -> None:
    answer = client.request(method, path, "x" if method == "PUT" else None)
    assert answer.status == 404
    if method != "HEAD":
        assert "/help" in answer.detail


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/kv/b/k", {"GET", "HEAD", "PUT", "POST", "DELETE"}),
        ("/kv/b", {"GET", "HEAD", "DELETE"}),
        ("/multi/b", {"POST", "PUT", "DELETE"}),
        ("/status", {"GET", "HEAD"}),
        ("/buckets", {"GET", "HEAD"}),
        ("/help", {"GET", "HEAD"}),
        ("/openapi.json", {"GET", "HEAD"}),
    ],
)
def test_the_wrong_method_is_405_with_allow(client: Client, path: str, allowed: set[str]) -> None:
    for method in {"GET", "PUT", "POST", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"} - allowed:
        refused = client.request(method, path, "x" if method in ("PUT", "POST") else None)
        assert refused.status == 405, method
        assert set(refused.headers["Allow"].split(", ")) == allowed
        assert refused.detail


def test_head_wherever_get(client: Client, bucket: str) -> None:
    for path in (f"/kv/{bucket}", "/buckets", "/status", "/help", "/openapi.json"):
        got, head = client.get(path), client.request("HEAD", path)
        assert (head.status, head.body) == (got.status, b"")
        assert head.headers["Content-Type"] == got.headers["Content-Type"]


@pytest.mark.inside
def test_one_line_per_request_in_the_log(client: Client, service: Service, bucket: str) -> None:
    client.request("PUT", f"/kv/{bucket}/logged", "12345", {"X-Request-Id": "r-1"})
    deadline = time.monotonic() + 10
    while True:
        lines = [line for line in service.log.read_text().splitlines() if "/logged " in line]
        if lines or time.monotonic() > deadline:
            break
        time.sleep(0.02)
    assert len(lines) == 1
    for part in ("method=PUT", "status=200", "outcome=inserted", "id=r-1", "ms="):
        assert part in lines[0]


@pytest.mark.parametrize(
    ("method", "path", "body", "code"),
    [
        ("GET", "/nothing", None, "path_not_found"),
        ("PATCH", "/kv/{bucket}/k", None, "method_not_allowed"),
        ("GET", "/kv/no%20bucket/k", None, "bad_bucket_name"),
        ("GET", "/kv/{bucket}/no%20key", None, "bad_key"),
        ("GET", "/kv/{bucket}?limit=x", None, "bad_query"),
        ("GET", "/kv/{bucket}?unknown=x", None, "bad_query"),
        ("PUT", "/multi/{bucket}", "[", "bad_json"),
        ("PUT", "/multi/{bucket}", '[{"key": "k"}]', "bad_item"),
        ("PUT", "/multi/{bucket}", '[{"data": "k"}]', "bad_item"),
    ],
)
def test_a_refusal_has_a_code(
    client: Client, bucket: str, method: str, path: str, body: str | None, code: str
) -> None:
    headers = {"Content-Type": "application/json"}
    refused = client.request(method, path.format(bucket=bucket), body, headers)
    assert refused.code == code


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"If-Match": "17"}, "bad_condition"),
        ({"If-Unmodified-Since": "Fri, 01 Jan 2100 00:00:00 GMT"}, "date_in_future"),
        ({"Content-Type": "\u00e4"}, "bad_content_type"),
        ({"Expect": "something"}, "expectation_unknown"),
        ({"Transfer-Encoding": "chunked"}, "length_required"),
    ],
)
@pytest.mark.inside
def test_a_refused_write_has_a_code(
    client: Client, bucket: str, headers: dict[str, str], code: str
) -> None:
    body = None if "Transfer-Encoding" in headers else "v"
    assert client.request("PUT", f"/kv/{bucket}/k", body, headers).code == code


@pytest.mark.inside
@pytest.mark.parametrize("expect", ["Expect: 100-continue\r\n", ""])
@pytest.mark.parametrize(
    ("line", "field", "code"),
    [
        ("PUT /kv/{bucket}/no%20key", "X: y", "bad_key"),
        ("PUT /kv/{bucket}/k?cas=0", "X: y", "bad_query"),
        ("POST /kv/{bucket}/k", "If-Match: x", "bad_condition"),
        ("PUT /kv/{bucket}/k", "Content-Range: bytes 0-1/2", "partial_write"),
        ("PUT /kv/{bucket}/k", "Content-Type: \x80", "bad_content_type"),
        ("PUT /nothing", "X: y", "path_not_found"),
        ("PATCH /kv/{bucket}/k", "X: y", "method_not_allowed"),
        ("PUT /multi/{bucket}", "Content-Type: text/plain", ""),
        ("PUT /multi/{bucket}?atomic=maybe", "Content-Type: application/json", "bad_query"),
        (
            "DELETE /multi/{bucket}",
            "Content-Type: application/json\r\nIf-Match: *",
            "bad_condition",
        ),
    ],
)
def test_what_the_head_decides_is_answered_before_the_body(
    service: Service, bucket: str, line: str, field: str, code: str, expect: str
) -> None:
    with socket.create_connection(("127.0.0.1", service.port), 10) as raw:
        head = f"{line.format(bucket=bucket)} HTTP/1.1\r\nHost: h\r\n{field}\r\n{expect}"
        raw.sendall(f"{head}Content-Length: 3000000\r\n\r\n".encode("latin-1"))
        answer = b""
        while data := raw.recv(65536):
            answer += data
            if code.encode() in answer:
                break
    assert answer.startswith(b"HTTP/1.1 4")
    assert (f'"code":"{code}"'.encode() if code else b"Invalid Content-Type") in answer


@pytest.mark.inside
@pytest.mark.parametrize("path", ["/kv/{bucket}/k", "/multi/{bucket}?atomic=true"])
def test_a_good_head_is_told_to_continue_and_done_once(
    service: Service, client: Client, bucket: str, path: str
) -> None:
    body = json.dumps([{"key": "k", "data": "v"}]).encode()
    with socket.create_connection(("127.0.0.1", service.port), 10) as raw:
        head = f"PUT {path.format(bucket=bucket)} HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        raw.sendall(head.encode())
        assert raw.recv(65536).startswith(b"HTTP/1.1 100 ")
        assert client.get(f"/kv/{bucket}/k").status == 404
        raw.sendall(body)
        assert raw.recv(65536).startswith(b"HTTP/1.1 200 ")
    assert client.get(f"/kv/{bucket}/k").status == 200


def test_a_missing_bucket_has_a_code(client: Client, kind: str) -> None:
    if kind == "partitioned":
        assert client.get("/kv/absent/k").code == "bucket_not_found"


@pytest.mark.inside
@pytest.mark.parametrize(
    "name", ["a status=500 id=b", 'a" status="500', "a\tb", "\xe9", "a;b", "", "%0a", "x[31m"]
)
def test_a_request_id_is_not_taken_for_another_field(
    client: Client, service: Service, bucket: str, name: str
) -> None:
    key = f"named-{name.encode().hex()}"
    client.request("PUT", f"/kv/{bucket}/{key}", "12345", {"X-Request-Id": name})
    (line,) = wait_until(
        lambda: [each for each in service.log.read_text().splitlines() if f"/{key} " in each]
    )
    assert line.endswith(" id=-")
