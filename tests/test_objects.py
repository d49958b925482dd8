"""/kv/{bucket}/{key}: objects in and out, byte for byte (docs/http-api.md)."""

from __future__ import annotations

import base64
import gzip
import hashlib
import itertools
import re
import threading
import time
from email.utils import formatdate, parsedate_to_datetime

import pytest

from tests.conftest import Database
from tests.service import Client, Service, running

TAG = re.compile(r'"[0-9]+-[0-9a-f]{8}"')
PAST = "Tue, 04 Jun 2013 03:01:31 GMT"
LATER = "Tue, 04 Jun 2013 03:01:32 GMT"


@pytest.fixture
def url(bucket: str) -> str:
    return f"/kv/{bucket}/key"


@pytest.mark.parametrize("method", ["PUT", "POST"])
def test_put_and_post_are_the_same(client: Client, url: str, method: str) -> None:
    for body in (b"first", b"second"):
        stored = client.request(method, url, body)
        assert (stored.status, stored.body) == (200, b"")
        assert TAG.fullmatch(stored.etag)
        got = client.get(url)
        assert (got.status, got.body, got.etag) == (200, body, stored.etag)
        assert got.headers["Last-Modified"] == stored.headers["Last-Modified"]


@pytest.mark.parametrize(
    "value",
    [b"", b"\0", bytes(range(256)), b"\r\n\r\n", "schön".encode(), b"x" * 1_000_000],
    ids=["empty", "nul", "all-bytes", "crlf", "utf8", "1MB"],
)
def test_values_are_bytes(client: Client, url: str, value: bytes) -> None:
    assert client.put(url, value).status == 200
    got = client.get(url)
    assert (got.status, got.body) == (200, value)
    assert got.headers["Content-Length"] == str(len(value))


def test_head_is_get_without_a_body(client: Client, url: str) -> None:
    client.put(url, "value", content_type="text/x-own")
    got, head = client.get(url), client.request("HEAD", url)
    assert (head.status, head.body) == (200, b"")
    # And how a cache came by its answer.
    different = {"Date", "Age", "X-Cache", "X-Varnish", "Cache-Status"}
    assert {k: v for k, v in head.headers.items() if k not in different} == {
        k: v for k, v in got.headers.items() if k not in different
    }
    missing = client.request("HEAD", url + "-missing")
    assert (missing.status, missing.body) == (404, b"")


def test_get_shows_what_was_stored(client: Client, url: str) -> None:
    client.put(url, "{}", content_type="application/json; charset=utf-8")
    got = client.get(url)
    assert got.headers["Content-Type"] == "application/json; charset=utf-8"
    assert got.headers["X-Content-Type-Options"] == "nosniff"
    assert "Vary" not in got.headers
    assert "Set-Cookie" not in got.headers
    assert got.headers["Cache-Control"] == "no-cache"


def test_a_missing_key_is_404_with_an_empty_body(client: Client, url: str) -> None:
    got = client.get(url)
    assert (got.status, got.body) == (404, b"")
    deleted = client.delete(url)
    assert (deleted.status, deleted.body) == (404, b"")


def test_delete_is_200_if_there_was_one(client: Client, url: str) -> None:
    client.put(url, "value")
    deleted = client.delete(url)
    assert (deleted.status, deleted.body) == (200, b"")
    assert client.get(url).status == 404
    assert client.delete(url).status == 404


@pytest.mark.parametrize(
    ("given", "value", "stored"),
    [
        (None, b"text", "text/plain; charset=utf-8"),
        (None, b"\xff", "application/octet-stream"),
        ("application/x-www-form-urlencoded", b"a=b&c", "text/plain; charset=utf-8"),
        ("application/x-www-form-urlencoded", b"\xfe", "application/octet-stream"),
        ("application/text", b"value", "application/text"),
        ("image/png", b"value", "image/png"),
    ],
)
def test_the_content_type_that_is_stored(
    client: Client, url: str, given: str | None, value: bytes, stored: str
) -> None:
    client.put(url, value, **({"content_type": given} if given else {}))
    got = client.get(url)
    assert (got.headers["Content-Type"], got.body) == (stored, value)


# Revisions and entity tags.


def test_a_revision_is_never_used_twice(client: Client, url: str) -> None:
    tags = []
    for _ in range(3):
        tags += [client.put(url, "same").etag, client.put(url, "same").etag]
        client.delete(url)
    assert len(set(tags)) == len(tags)
    revisions = [int(tag.strip('"').split("-")[0]) for tag in tags]
    assert revisions == sorted(revisions)


def test_the_tag_shows_a_hash_of_the_value(client: Client, url: str) -> None:
    hashes = [client.put(url, body).etag.strip('"').split("-")[1] for body in ("a", "b", "a")]
    assert hashes[0] == hashes[2] != hashes[1]


# modified_at, the client's clock.


def test_an_undated_insert_is_modified_now(client: Client, url: str) -> None:
    before = int(time.time())
    stored = client.put(url, "value")
    modified = parsedate_to_datetime(stored.headers["Last-Modified"]).timestamp()
    assert before <= modified <= time.time()


def test_an_undated_update_leaves_modified_at_and_advances_the_tag(
    client: Client, url: str
) -> None:
    first = client.put(url, "1", if_unmodified_since=PAST)
    second = client.put(url, "2")
    assert first.headers["Last-Modified"] == second.headers["Last-Modified"] == PAST
    assert first.etag != second.etag
    assert client.get(url).headers["Last-Modified"] == PAST


def test_the_date_is_the_new_modified_at(client: Client, url: str) -> None:
    client.put(url, "1", if_unmodified_since=PAST)
    assert client.put(url, "2", if_unmodified_since=LATER).headers["Last-Modified"] == LATER
    assert client.get(url).headers["Last-Modified"] == LATER


def test_an_older_date_is_412_and_changes_nothing(client: Client, url: str) -> None:
    first = client.put(url, "1", if_unmodified_since=LATER)
    refused = client.put(url, "2", if_unmodified_since=PAST)
    assert (refused.status, refused.body) == (412, b"")
    got = client.get(url)
    assert (got.body, got.etag, got.headers["Last-Modified"]) == (b"1", first.etag, LATER)


def test_the_date_one_was_given_may_be_sent_back(client: Client, url: str) -> None:
    given = client.put(url, "1").headers["Last-Modified"]
    assert client.put(url, "2", if_unmodified_since=given).status == 200
    assert client.get(url).body == b"2"


@pytest.mark.parametrize(
    "date",
    ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"],
)
def test_all_three_forms_of_a_date_parse(client: Client, url: str, date: str) -> None:
    stored = client.put(url, "value", if_unmodified_since=date)
    assert stored.headers["Last-Modified"] == "Sun, 06 Nov 1994 08:49:37 GMT"


@pytest.mark.parametrize(
    "date",
    ["", "yesterday", "2013-06-04T03:01:31Z", "1370314891", "Tue, 31 Feb 2013 03:01:31 GMT"],
)
@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE"])
def test_any_other_date_is_400_with_the_fixed_sentence(
    client: Client, url: str, method: str, date: str
) -> None:
    client.put(url, "value")
    refused = client.request(method, url, "new", {"If-Unmodified-Since": date})
    assert refused.status == 400
    assert refused.body == b"Error in If-Unmodified-Since format. Use RFC 1123 date format.", (
        refused.body
    )
    assert client.get(url).body == b"value"


def test_a_date_more_than_48_hours_ahead_is_400(client: Client, url: str) -> None:
    limit = time.time() + 48 * 3600
    far = client.put(url, "1", if_unmodified_since=formatdate(limit + 60, usegmt=True))
    assert far.status == 400
    assert "future" in far.detail
    assert client.get(url).status == 404
    near = client.put(url, "1", if_unmodified_since=formatdate(limit - 60, usegmt=True))
    assert near.status == 200


# Compare and set.


def test_if_match_is_compare_and_set(client: Client, url: str) -> None:
    first = client.put(url, "1")
    second = client.put(url, "2", if_match=first.etag)
    assert second.status == 200
    refused = client.put(url, "3", if_match=first.etag)
    assert (refused.status, refused.body) == (412, b"")
    assert client.get(url).body == b"2"
    assert client.put(url, "4", if_match=f'"nonsense", {second.etag}').status == 200


def test_if_match_on_a_missing_key_is_412(client: Client, url: str) -> None:
    assert client.put(url, "1", if_match="*").status == 412
    assert client.put(url, "1", if_match='"1-00000000"').status == 412
    assert client.get(url).status == 404


def test_if_match_star_needs_an_object(client: Client, url: str) -> None:
    client.put(url, "1")
    assert client.put(url, "2", if_match="*").status == 200


def test_if_match_understands_the_seeds_date(client: Client, url: str) -> None:
    client.put(url, "1", if_unmodified_since=PAST)
    assert client.put(url, "2", if_match=f'"{LATER}"').status == 412
    assert client.put(url, "2", if_match=f'"{PAST}"').status == 200


def test_a_weak_tag_never_matches_a_write(client: Client, url: str) -> None:
    tag = client.put(url, "1").etag
    assert client.put(url, "2", if_match=f"W/{tag}").status == 412


def test_if_none_match_star_is_create_only(client: Client, url: str) -> None:
    assert client.put(url, "1", if_none_match="*").status == 200
    refused = client.put(url, "2", if_none_match="*")
    assert (refused.status, refused.body) == (412, b"")
    assert client.get(url).body == b"1"


def test_if_none_match_with_a_tag(client: Client, url: str) -> None:
    tag = client.put(url, "1").etag
    assert client.put(url, "2", if_none_match=tag).status == 412
    assert client.put(url, "2", if_none_match=f"W/{tag}").status == 412
    assert client.put(url, "2", if_none_match='"1-00000000"').status == 200


def test_all_preconditions_must_hold(client: Client, url: str) -> None:
    tag = client.put(url, "1", if_unmodified_since=LATER).etag
    assert client.put(url, "2", if_match=tag, if_unmodified_since=PAST).status == 412
    assert client.put(url, "2", if_match='"0-00000000"', if_unmodified_since=LATER).status == 412
    assert client.put(url, "2", if_match=tag, if_none_match=tag).status == 412
    assert client.put(url, "2", if_match=tag, if_unmodified_since=LATER).status == 200


def test_delete_takes_all_preconditions(client: Client, url: str) -> None:
    tag = client.put(url, "1", if_unmodified_since=LATER).etag
    for condition in (
        {"if_match": '"0-00000000"'},
        {"if_none_match": tag},
        {"if_none_match": "*"},
        {"if_unmodified_since": PAST},
    ):
        refused = client.delete(url, **condition)
        assert (refused.status, refused.body) == (412, b""), condition
    assert client.delete(url, if_match=tag, if_unmodified_since=LATER).status == 200
    assert client.delete(url, if_match="*").status == 412


def test_a_read_takes_the_date_of_if_match_without_quotes(client: Client, url: str) -> None:
    client.put(url, "1", if_unmodified_since=PAST)
    assert client.get(url, if_match=PAST).body == b"1"
    assert client.get(url, x_if_match=PAST).body == b"1"
    assert client.get(url, if_match=LATER).status == 412


def test_a_date_is_no_tag_of_if_none_match(client: Client, url: str) -> None:
    """modified_at stands still while the value changes: it does not vouch for a copy."""
    client.put(url, "1", if_unmodified_since=PAST)
    client.put(url, "2")
    assert client.get(url, if_none_match=f'"{PAST}"').body == b"2"
    assert client.put(url, "3", if_none_match=f'"{PAST}"').status == 200


# What would be ignored is refused.


@pytest.mark.parametrize("method", ["PUT", "POST"])
@pytest.mark.parametrize("content_range", ["bytes 3-8/9", "bytes 0-0/1", "bytes */9", "x"])
def test_a_part_of_a_value_is_not_stored(
    client: Client, url: str, method: str, content_range: str
) -> None:
    client.put(url, "123456789")
    refused = client.request(method, url, "part", {"Content-Range": content_range})
    assert (refused.status, refused.code) == (400, "partial_write")
    assert client.get(url).body == b"123456789"


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE"])
@pytest.mark.parametrize("query", ["cas=0", "if_none_match=*", "=", "atomic=true"])
def test_an_unknown_query_of_a_write_is_400(
    client: Client, url: str, method: str, query: str
) -> None:
    client.put(url, "1")
    body = None if method == "DELETE" else "2"
    refused = client.request(method, f"{url}?{query}", body)
    assert (refused.status, refused.code) == (400, "bad_query")
    assert client.get(url).body == b"1"


@pytest.mark.parametrize("method", ["PUT", "POST"])
@pytest.mark.parametrize("header", ["Content-MD5", "Digest", "Content-Digest", "Repr-Digest"])
def test_a_digest_is_checked(client: Client, url: str, method: str, header: str) -> None:
    def digest(value: bytes) -> str:
        if header == "Content-MD5":
            return base64.b64encode(hashlib.md5(value).digest()).decode()
        parts = []
        for name in ("sha-256", "sha-512"):
            made = base64.b64encode(hashlib.new(name.replace("-", ""), value).digest()).decode()
            parts.append(f"{name.upper()}={made}" if header == "Digest" else f"{name}=:{made}:")
        return f"unknown=:AAAA:, {parts[0]} , {parts[1]}"

    assert client.request(method, url, "value", {header: digest(b"value")}).status == 200
    bad = [digest(b"other")]
    if header in ("Content-MD5", "Digest"):
        bad += [digest(b"value") + "x", {"Digest": "md5=", "Content-MD5": "?"}[header]]
    else:
        assert (
            client.request(method, url, "value", {header: digest(b"value") + ";a=1"}).status == 200
        )
        bad += [digest(b"value").replace("=:", "="), "?"]
    for each in bad:
        refused = client.request(method, url, "next", {header: each})
        assert (refused.status, refused.code) == (400, "digest_mismatch"), each
    assert client.get(url).body == b"value"


def test_a_digest_of_unknown_kind_only_is_ignored(client: Client, url: str) -> None:
    assert client.put(url, "value", content_digest="unixsum=:AAAA:").status == 200
    assert client.put(url, "value", content_digest="").status == 200


@pytest.mark.parametrize(
    ("content_type", "active"),
    [
        ("text/html", True),
        ("Text/HTML; charset=utf-8", True),
        ("application/xhtml+xml", True),
        ("image/svg+xml", True),
        ("application/xml", True),
        ("text/xml", True),
        ("application/rss+xml ;a=b", True),
        ("multipart/related; boundary=x", True),
        ("nothing", True),
        ("text/html/x", True),
        ("a b/c", True),
        ("application/pdf", False),
        ("image/png", False),
        ("text/plain; charset=utf-8", False),
        ("application/json", False),
        ("application/octet-stream", False),
    ],
)
def test_only_what_may_run_in_a_browser_is_sandboxed(
    client: Client, url: str, content_type: str, active: bool
) -> None:
    client.put(url, "value", content_type=content_type)
    got = client.get(url)
    assert got.headers["X-Content-Type-Options"] == "nosniff"
    policy = got.headers["Content-Security-Policy"]
    assert policy == ("default-src 'none'; sandbox" if active else None)


@pytest.mark.inside
def test_if_unmodified_since_on_reads(client: Client, url: str) -> None:
    tag = client.put(url, "1", if_unmodified_since=LATER).etag
    assert client.get(url, if_unmodified_since=PAST).status == 412
    assert client.request("HEAD", url, headers={"If-Unmodified-Since": PAST}).status == 412
    assert client.get(url, if_unmodified_since=LATER).body == b"1"
    # RFC 9110 13.1.4: ignored beside If-Match, and if it cannot be read.
    assert client.get(url, if_unmodified_since=PAST, if_match=tag).body == b"1"
    assert client.get(url, if_unmodified_since="yesterday").body == b"1"
    assert client.get(url + "-missing", if_unmodified_since=PAST).status == 404


@pytest.mark.parametrize(
    ("header", "method"),
    list(itertools.product(["If-Match", "If-None-Match"], ["GET", "PUT", "DELETE"])),
)
@pytest.mark.parametrize("value", ["", "unquoted", '"open', '"a" "b"', "W/x", ","])
def test_a_precondition_that_cannot_be_parsed_is_400(
    client: Client, url: str, method: str, header: str, value: str
) -> None:
    client.put(url, "value")
    body = "new" if method == "PUT" else None
    refused = client.request(method, url, body, {header: value})
    assert refused.status == 400
    assert header in refused.detail
    assert client.get(url).body == b"value"


def test_of_writers_with_the_same_tag_exactly_one_wins(
    service: Service, client: Client, url: str
) -> None:
    for _ in range(25):
        tag = client.put(url, "start").etag
        barrier = threading.Barrier(8)
        statuses: list[int] = []

        def write(number: int, barrier=barrier, statuses=statuses, tag=tag) -> None:
            mine = service.client()
            barrier.wait()
            statuses.append(mine.put(url, str(number), if_match=tag).status)
            mine.close()

        _in_parallel(write, 8)
        assert sorted(statuses) == [200] + [412] * 7


def test_of_creators_exactly_one_wins(service: Service, client: Client, url: str) -> None:
    for _ in range(25):
        client.delete(url)
        barrier = threading.Barrier(8)
        statuses: list[int] = []

        def create(number: int, barrier=barrier, statuses=statuses) -> None:
            mine = service.client()
            barrier.wait()
            statuses.append(mine.put(url, str(number), if_none_match="*").status)
            mine.close()

        _in_parallel(create, 8)
        assert sorted(statuses) == [200] + [412] * 7


def test_an_unconditional_write_is_never_412_while_others_delete(
    service: Service, url: str
) -> None:
    """The original answered 412 to 7 % of them."""
    statuses: dict[str, set[int]] = {"PUT": set(), "DELETE": set()}
    revisions: list[int] = []

    def work(number: int) -> None:
        mine = service.client()
        for turn in range(150):
            if number < 5:
                put = mine.put(url, f"{number}-{turn}")
                statuses["PUT"].add(put.status)
                revisions.append(int(put.etag.strip('"').split("-")[0]))
            else:
                statuses["DELETE"].add(mine.delete(url).status)
        mine.close()

    _in_parallel(work, 8)
    assert statuses == {"PUT": {200}, "DELETE": {200, 404}}
    assert len(set(revisions)) == len(revisions)


def _in_parallel(work: object, count: int) -> None:
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)  # type: ignore[operator]
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures, failures


# Preconditions on reads.


@pytest.mark.parametrize("header", ["If-Match", "X-If-Match"])
def test_reads_with_if_match(client: Client, url: str, header: str) -> None:
    tag = client.put(url, "value", if_unmodified_since=PAST).etag
    for value in (tag, f'"x", {tag}', "*", f'"{PAST}"'):
        got = client.request("GET", url, headers={header: value})
        assert (got.status, got.body) == (200, b"value"), value
    for value in ('"1-00000000"', f'"{LATER}"', f"W/{tag}"):
        refused = client.request("GET", url, headers={header: value})
        assert (refused.status, refused.body) == (412, b""), value
    missing = client.request("GET", url + "-missing", headers={header: "*"})
    assert (missing.status, missing.body) == (412, b"")
    assert client.request("GET", url + "-missing", headers={header: tag}).status == 404


def test_if_none_match_is_304(client: Client, url: str) -> None:
    tag = client.put(url, "value").etag
    for value in (tag, f"W/{tag}", f'"x", {tag}', "*"):
        same = client.get(url, if_none_match=value)
        assert (same.status, same.body, same.etag) == (304, b"", tag), value
    assert client.get(url, if_none_match='"1-00000000"').status == 200
    assert client.get(url + "-missing", if_none_match="*").status == 404


def test_if_modified_since_is_304_only_when_certain(client: Client, url: str) -> None:
    client.put(url, "1", if_unmodified_since=PAST)
    # modified_at stands still while the content changes: the seed's date says nothing.
    client.put(url, "2")
    assert client.get(url, if_modified_since=PAST).status == 200
    assert client.get(url, if_modified_since=LATER).status == 200
    future = formatdate(time.time() + 3600, usegmt=True)
    assert client.get(url, if_modified_since=future).status == 200
    assert client.get(url, if_modified_since="nonsense").status == 200


@pytest.mark.inside
def test_if_modified_since_is_304_once_the_second_is_over(client: Client, url: str) -> None:
    """A cache does not know when a row was written, and answers with the value."""
    client.put(url, "2", if_unmodified_since=PAST)
    written = int(time.time())
    while time.time() < written + 2:
        time.sleep(0.05)
    now = formatdate(written + 1, usegmt=True)
    assert client.get(url, if_modified_since=now).status == 304
    client.put(url, "3")
    assert client.get(url, if_modified_since=now).status == 200


def test_if_modified_since_is_not_fooled_by_an_object_dated_ahead(client: Client, url: str) -> None:
    """Deleted and created again: a copy of the first one may be dated after the second."""
    ahead = formatdate(time.time() + 2, usegmt=True)
    client.put(url, "first", if_unmodified_since=ahead)
    client.delete(url)
    client.put(url, "second")
    due = parsedate_to_datetime(ahead).timestamp() + 1
    while time.time() < due:
        time.sleep(0.05)
    assert client.get(url, if_modified_since=ahead).status == 200


def test_if_none_match_wins_over_if_modified_since(client: Client, url: str) -> None:
    tag = client.put(url, "1").etag
    assert client.get(url, if_none_match=tag, if_modified_since=PAST).status == 304


# Names.


@pytest.mark.parametrize(
    "key",
    [
        *"k A-Z_.,~:@=+-9 ... - ~ 1:2@3=4+5 k.json".split(),
        *"builds/2026/11/29/log.txt a/b a/.b .a/..b/... kv/b/k ~/+".split(),
        "a" * 1024,
        "a/" * 511 + "ab",
    ],
)
def test_legal_keys(client: Client, bucket: str, key: str) -> None:
    assert client.put(f"/kv/{bucket}/{key}", key).status == 200
    assert client.get(f"/kv/{bucket}/{key}").body == key.encode()


@pytest.mark.parametrize(
    "key",
    [
        *"a%20b a%C3%A9 %2e . .. a*b a!b a%0ab a(b) %D9%A3".split(),
        *"/a a/ a//b // a/./b a/../b ./a ../a a/. a/.. a/%2e%2e/b a%2Fb a%2fb a/b%2Fc".split(),
        *"a/b*c a/%20/b a/b%5Cc %2Fa".split(),
        "a" * 1025,
        "a/" * 512 + "a",
    ],
)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_illegal_keys_are_400_naming_the_alphabet(
    client: Client, bucket: str, method: str, key: str
) -> None:
    refused = client.request(method, f"/kv/{bucket}/{key}", "x" if method == "PUT" else None)
    assert refused.status == 400
    if "%0a" not in key:  # refused by the reader of requests already
        assert "A-Z a-z 0-9 _ . , ~ : @ = + -" in refused.detail


def test_a_key_with_slashes_is_an_object_like_any_other(client: Client, bucket: str) -> None:
    url = f"/kv/{bucket}/builds/2026/log.txt"
    stored = client.put(url, "one", content_type="text/x")
    assert client.put(f"/kv/{bucket}/builds/2026", "its parent").status == 200
    assert client.put(url, "two", if_match=stored.etag).status == 200
    assert client.put(url, "three", if_match=stored.etag).status == 412
    assert client.put(f"/kv/{bucket}/builds%2D1/%61", "escaped").status == 200
    assert client.get(f"/kv/{bucket}/builds-1/a").body == b"escaped"
    read = client.get(url)
    assert (read.body, read.headers["Cache-Control"]) == (b"two", "no-cache")
    assert client.request("HEAD", url).status == 200
    assert client.request("PATCH", url, "x").headers["Allow"] == "DELETE, GET, HEAD, POST, PUT"
    assert client.request("DELETE", url).status == 200
    assert client.get(url).status == 404
    assert client.get(f"/kv/{bucket}/builds/2026").body == b"its parent"


@pytest.mark.parametrize("bucket", ["a" * 257, "a~b", "a:b", "a%20b", "a+b"])
def test_illegal_buckets_are_400_naming_the_alphabet(service: Service, bucket: str) -> None:
    for client, method, path in (
        (service.client(), "GET", f"/kv/{bucket}/key"),
        (service.client(), "GET", f"/kv/{bucket}"),
        (service.client(), "PUT", f"/kv/{bucket}/key"),
        (service.admin(), "PUT", f"/buckets/{bucket}"),
    ):
        refused = client.request(method, path, "x" if method == "PUT" else None)
        assert refused.status == 400
        assert "A-Z a-z 0-9 _ . , -" in refused.detail
        client.close()


def test_any_legal_bucket_name_works(service: Service, client: Client) -> None:
    long = "n" * 199
    names = [
        "Foo",
        "foo",
        "user",
        "a-b",
        "a_b",
        "1a",
        "select",
        "a,b",
        "a.b",
        long + "1",
        long + "2",
    ]
    names += ["x" * 256, "-", "_o_1", "--"]
    admin = service.admin()
    for name in names:
        assert admin.request("PUT", f"/buckets/{name}").status == 200, name
        assert client.put(f"/kv/{name}/key", name).status == 200, name
    for name in names:
        assert client.get(f"/kv/{name}/key").body == name.encode()
    for name in names:
        # A bucket with keys would keep its dropping waiting for the caches.
        assert client.delete(f"/kv/{name}/key").status == 200, name
        assert admin.request("DELETE", f"/buckets/{name}").status == 200, name
    admin.close()


# A cache in front decodes the first two, which then are the key as any other.
@pytest.mark.parametrize(
    "spelling",
    [
        pytest.param("/kv/{}/%6Bey", marks=pytest.mark.inside),
        pytest.param("/kv/{}/k%65y", marks=pytest.mark.inside),
        "/kv/{}/key?",
        "/kv/{}/key?x=1",
    ],
)
def test_other_spellings_are_served_but_never_cached(
    client: Client, bucket: str, spelling: str
) -> None:
    client.put(f"/kv/{bucket}/key", "value")
    got = client.get(spelling.format(bucket))
    assert (got.status, got.body) == (200, b"value")
    assert got.headers["Cache-Control"] == "no-store"
    if spelling.endswith("x=1"):  # on a write it would be ignored
        assert client.put(spelling.format(bucket), "new").code == "bad_query"
    else:
        assert client.put(spelling.format(bucket), "new").status == 200
        assert client.get(f"/kv/{bucket}/key").body == b"new"


# Buckets that are not there.


def test_a_missing_bucket(client: Client, service: Service, kind: str) -> None:
    for method, path, body, headers in (
        ("GET", "/kv/none-such/key", None, {}),
        ("HEAD", "/kv/none-such/key", None, {}),
        ("PUT", "/kv/none-such/key", "x", {}),
        ("POST", "/kv/none-such/key", "x", {}),
        ("DELETE", "/kv/none-such/key", None, {}),
        ("GET", "/kv/none-such", None, {}),
        ("POST", "/multi/none-such", '[{"key":"k"}]', {"Content-Type": "application/json"}),
        ("DELETE", "/multi/none-such", '[{"key":"k"}]', {"Content-Type": "application/json"}),
        (
            "PUT",
            "/multi/none-such",
            '[{"key":"k","data":"v"}]',
            {"Content-Type": "application/json"},
        ),
    ):
        answer = client.request(method, path, body, headers)
        if kind == "partitioned":
            assert answer.status == 404, (method, path)
            if method != "HEAD":
                assert "poky bucket create" in answer.detail
    if kind == "flat":  # needs no creation
        assert client.get("/kv/none-such/k").body == b"v"
        service.admin().request("DELETE", "/buckets/none-such?keys=drop")


# Limits.


def test_a_value_above_the_limit_is_413(client: Client, url: str, service: Service) -> None:
    limit = 16 * 1024 * 1024
    refused = client.put(url, b"x" * (limit + 1))
    assert refused.status == 413
    assert str(limit) in refused.detail
    assert service.client().get(url).status == 404


def test_a_value_at_the_limit_is_stored(client: Client, url: str) -> None:
    value = bytes(16 * 1024 * 1024)
    assert client.put(url, value).status == 200
    assert client.get(url).body == value


# Content codings.

CODED = gzip.compress(b'{"a": 1}')


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ("gzip", "gzip"),
        ("GZIP", "gzip"),
        ("x-gzip", "gzip"),
        ("br", "br"),
        ("zstd", "zstd"),
        ("deflate", "deflate"),
        ("compress", "compress"),
        ("gzip, br", "gzip, br"),
        ("gzip,identity", "gzip"),
        ("identity", None),
        ("", None),
    ],
)
def test_the_content_coding_is_kept_with_the_value(
    client: Client, bucket: str, sent: str, stored: str | None
) -> None:
    path = f"/kv/{bucket}/k"
    put = client.put(path, CODED, content_encoding=sent, content_type="application/json")
    assert put.status == 200, put.body
    got = client.get(path)
    assert (got.headers["Content-Encoding"], got.body) == (stored, CODED)
    assert client.request("HEAD", path).headers["Content-Encoding"] == stored
    (listed,) = client.get(f"/kv/{bucket}").json()["keys"]
    assert listed.get("content_encoding") == stored
    # It goes with the value: the next one has its own, or none; also by If-Match.
    assert client.put(path, b"plain", if_match="*").status == 200
    assert client.get(path).headers["Content-Encoding"] is None
    assert client.put(path, CODED, content_encoding="br", if_match="*").status == 200
    assert client.get(path).headers["Content-Encoding"] == "br"
    assert client.put(path, b"plain").status == 200
    assert client.get(path).headers["Content-Encoding"] is None


@pytest.mark.parametrize("coding", ["aws-chunked", "aws-chunked, gzip", "gzip, zip", "base64", "*"])
def test_an_unknown_content_coding_is_415_and_nothing_is_stored(
    client: Client, bucket: str, coding: str
) -> None:
    path = f"/kv/{bucket}/k"
    refused = client.put(path, CODED, content_encoding=coding)
    assert refused.status == 415
    assert next(each for each in coding.split(", ") if each != "gzip") in refused.detail
    assert refused.headers["Accept-Encoding"] == "br, compress, deflate, gzip, zstd"
    assert client.get(path).status == 404


def test_batches_keep_content_codings_and_are_not_decoded_themselves(
    client: Client, bucket: str
) -> None:
    coded = base64.b64encode(CODED).decode()
    items = [
        {"key": "a", "data_base64": coded, "content_encoding": "x-gzip"},
        {"key": "b", "data": "plain"},
        {"key": "c", "data_base64": coded, "content_encoding": "identity"},
    ]
    assert client.batch("PUT", bucket, items).status == 200
    keys = [{"key": key} for key in "abc"]
    objects = client.batch("POST", bucket, keys, accept="application/vnd.poky.objects+json").json()
    assert [each.get("content_encoding") for each in objects] == ["gzip", None, None]
    assert client.get(f"/kv/{bucket}/a").headers["Content-Encoding"] == "gzip"
    items[1]["content_encoding"] = "aws-chunked"
    refused = client.batch("PUT", bucket, items)
    assert (refused.status, "Item 1, field content_encoding" in refused.detail) == (400, True)
    for method in ("PUT", "POST", "DELETE"):
        refused = client.batch(method, bucket, keys, content_encoding="gzip")
        assert (refused.status, "gzip" in refused.detail) == (415, True)
        assert refused.headers["Accept-Encoding"] == "identity"
    assert client.batch("POST", bucket, keys[1:2], content_encoding="identity").status == 200


@pytest.mark.inside
@pytest.mark.parametrize("name", ["%2E", "%2E%2E", ".."])
def test_a_bucket_is_not_called_dot(service: Service, client: Client, name: str) -> None:
    """Clients resolve such segments of a path, and could not reach it."""
    for refused in (
        service.admin().request("PUT", f"/buckets/{name}"),
        client.get(f"/kv/{name}"),
        client.get(f"/kv/{name}/k"),
        client.batch("POST", name, []),
    ):
        assert refused.status == 400
        assert "but not . or .." in refused.detail


@pytest.mark.inside
def test_a_value_and_a_batch_have_limits_of_their_own(
    database: Database, bucket: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    batch = {"Content-Type": "application/json"}
    item = b'[{"key": "k", "data": "%s"}]'
    for most_value, most_batch in ((1000, 3000), (3000, 1000)):
        log = tmp_path_factory.mktemp("limits") / "log"
        limits = {"max_value_bytes": str(most_value), "max_batch_bytes": str(most_batch)}
        with running(database.dsn_service, log, **limits) as service:
            client = service.client()
            assert client.put(f"/kv/{bucket}/k", b"x" * most_value).status == 200
            refused = client.put(f"/kv/{bucket}/k", b"x" * (most_value + 1))
            assert refused.status == 413
            assert f" at most {most_value} bytes." in refused.detail
            fits = item % (b"x" * (min(most_batch, most_value) - len(item) + 2))
            assert len(fits) == min(most_batch, most_value)
            assert client.request("PUT", f"/multi/{bucket}", fits, batch).status == 200
            large = fits + b" " * (most_batch + 1 - len(fits))
            refused = client.request("PUT", f"/multi/{bucket}", large, batch)
            assert refused.status == 413
            assert f" at most {most_batch} bytes." in refused.detail
