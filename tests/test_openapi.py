"""Schemathesis: whatever the OpenAPI document allows or forbids, the service answers as it says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.service import Client, Service


@pytest.mark.timeout(600)
@pytest.mark.slow
def test_the_service_conforms_to_its_document(service: Service, tmp_path: Path) -> None:
    document = service.client().get("/openapi.json").json()
    # Most generated requests should reach a bucket that is there.
    service.admin().request("PUT", "/buckets/fuzzed")
    for path, operations in document["paths"].items():
        for parameter in operations.get("parameters", []):
            if parameter["name"] == "bucket":
                parameter["schema"] = {"enum": ["fuzzed", "absent"]}
                assert "{bucket}" in path
    file = tmp_path / "openapi.json"
    file.write_text(json.dumps(document))
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "schemathesis"),
            "run",
            str(file),
            "--url",
            service.url,
            "--checks",
            "not_a_server_error,status_code_conformance,content_type_conformance,"
            "response_schema_conformance",
            "--max-examples",
            "30",
            "--seed",
            "1",
            "--no-color",
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=560,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_each_operation_is_told_in_a_sentence_and_has_a_name(client: Client) -> None:
    operations = [
        operation
        for methods in client.get("/openapi.json").json()["paths"].values()
        for method, operation in methods.items()
        if method != "parameters"
    ]
    for each in operations:
        assert re.fullmatch(r"[A-Z][a-z]* [^:]+\.", each["summary"]), each["summary"]
    names = [each["operationId"] for each in operations]
    assert sorted(set(names)) == sorted(names)


def test_the_document_allows_what_the_service_takes(client: Client, bucket: str) -> None:
    """If-Match of every form; a key of a batch as in a path."""
    document = client.get("/openapi.json").json()
    (pattern,) = {
        parameter["schema"]["pattern"]
        for operation in document["paths"]["/kv/{bucket}/{key}"].values()
        for parameter in (operation.get("parameters", []) if isinstance(operation, dict) else [])
        if parameter["name"] == "If-Match"
    }
    date = "Sun, 06 Nov 1994 08:49:37 GMT"
    for text in ("*", '"1-a"', f'"{date}"', f'"1-a", "{date}"', date):
        assert re.fullmatch(pattern, text), text
        assert client.get(f"/kv/{bucket}/none", if_match=text).status in (404, 412), text
    assert not re.fullmatch(pattern, '"a b!"')
    assert client.get(f"/kv/{bucket}/none", if_match='"a b!"').status == 400
    in_path = document["paths"]["/kv/{bucket}/{key}"]["parameters"][1]["schema"]
    for operation in ("put", "post", "delete"):
        body = document["paths"]["/multi/{bucket}"][operation]["requestBody"]
        item = body["content"]["application/json"]["schema"]["items"]
        assert item["properties"]["key"] == in_path


def test_the_document_says_what_holds_where_a_parameter_is_missing(
    client: Client, bucket: str
) -> None:
    document = client.get("/openapi.json").json()
    defaults = {
        (path, parameter["name"]): parameter["schema"]["default"]
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if method != "parameters"
        for parameter in operation.get("parameters", [])
        if "default" in parameter["schema"]
    }
    assert defaults == {
        ("/kv/{bucket}", "limit"): 100,
        ("/changes/{bucket}", "limit"): 100,
        ("/changes/{bucket}", "wait"): 0,
    }
    items = [{"key": f"{number:03}", "data": ""} for number in range(101)]
    assert client.batch("PUT", bucket, items).status == 200
    assert len(client.get(f"/kv/{bucket}").json()["keys"]) == 100
