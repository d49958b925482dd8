r"""Raw requests, each with what must come of it: at the service alone, and through nginx.

The bytes may name {bucket}, {key} (one per case) and {next}: a whole request for a path that only
this case has. What must come of it is a pattern for the statuses of all answers, in order. When the
service sees {next} and the client gets no answer of its own to it (404), it was smuggled.
``leaves`` is what {key} holds afterwards; None: nothing. "close" is an end without any answer.
"""

from __future__ import annotations

from dataclasses import dataclass

REFUSED = r"4\d\d"


@dataclass(frozen=True)
class Case:
    kind: str
    name: str
    data: bytes
    direct: str = REFUSED
    chain: str = REFUSED
    leaves: bytes | None = None
    finish: bool = False  # end our side after the data


def _put(fields: str, body: bytes = b"", *, method: str = "PUT", version: str = "1.1") -> bytes:
    lines = "".join(f"{each}\r\n" for each in fields.split("|") if each)
    head = f"{method} /kv/{{bucket}}/{{key}} HTTP/{version}\r\nHost: poky\r\n{lines}\r\n"
    return head.encode("latin-1") + body


def _get(target: str, fields: str = "", *, method: str = "GET", host: str = "Host: poky") -> bytes:
    lines = "".join(f"{each}\r\n" for each in (host, *fields.split("|")) if each)
    return f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode("latin-1")


NEXT = b"{next}"
CHUNKED = b"3\r\nabc\r\n0\r\n\r\n"
CLOSE = "Connection: close"
MISSING = "/kv/{bucket}/nothing"


def _content_length() -> list[Case]:
    bad = {
        "plus sign": "+3", "minus sign": "-3", "hexadecimal": "0x3", "underscore": "4_2",
        "list of the same": "3, 3", "list of two": "3, 0", "fraction": "3.0", "exponent": "3e0",
        "ten to the thirty": "1" + "0" * 30, "two to the 64 and three": str(2**64 + 3),
        "empty": "", "word": "three", "semicolon": "3;", "quoted": '"3"', "octal digits": "\xb3",
        "inner space": "3 0", "vertical tab": "\x0b3", "form feed": "3\x0c", "NUL": "3\0",
        "leading comma": ",3", "trailing comma": "3,",
    }  # fmt: skip
    cases = [
        Case("Content-Length", name, _put(f"Content-Length: {value}", b"abc" + NEXT))
        for name, value in bad.items()
    ]
    twice = {
        "twice the same": "Content-Length: 3|Content-Length: 3",
        "twice, 3 and 0": "Content-Length: 3|Content-Length: 0",
        "twice, 0 and 3": "Content-Length: 0|Content-Length: 3",
        "space before the colon": "Content-Length : 3",
        "tab before the colon": "Content-Length\t: 3",
        "NUL in the name": "Content-Length\0: 3",
        "vertical tab before the name": "\x0bContent-Length: 3",
        "folded": "Content-Length:\r\n 3",
        "folded away": "X: y\r\n Content-Length: 3",
        "bare CR before it": "X: y\rContent-Length: 3",
    }
    cases += [
        Case("Content-Length", name, _put(f"{fields}|{CLOSE}", b"abc" + NEXT))
        for name, fields in twice.items()
    ]
    return [
        *cases,
        Case(
            "Content-Length",
            "underscore in the name",
            _put(f"Content_Length: 3|{CLOSE}"),
            direct="400|411",
            chain="200|4..",
            leaves=b"",
        ),
        Case(
            "Content-Length",
            "leading zeros are decimal",
            _put(f"Content-Length: 0003|{CLOSE}", b"abc"),
            direct="200",
            chain="200|400",
            leaves=b"abc",
        ),
        Case("Content-Length", "none, HTTP/1.0", _put("", b"abc", version="1.0"), "411", "411"),
        Case("Content-Length", "bytes beyond it", _put("Content-Length: 3", b"abcdefgh\r\n\r\n"),
             "200 400", "200 400", leaves=b"abc"),
        Case("Content-Length", "upload cut short", _put("Content-Length: 100", b"abc"),
             "400", "400|close", finish=True),
        Case("Content-Length", "larger than any value", _put("Content-Length: 99999999", NEXT),
             "413", "413"),
    ]  # fmt: skip


def _hidden_bodies() -> list[Case]:
    """CL.0 and 0.CL: a body where none is expected must not become a request."""
    smuggler = "Content-Length: {next_length}"
    targets = {
        "GET of an object": (MISSING, "GET", "404", "404"),
        "GET of /status": ("/status", "GET", "200", "200"),
        "HEAD": (MISSING, "HEAD", "404", "400|404"),  # Varnish refuses a body there
        "DELETE": (MISSING, "DELETE", "404|400", "404|400"),
        "OPTIONS": (MISSING, "OPTIONS", "405", "405"),
        "an unknown path": ("/x", "POST", "404", "404"),
        "nginx's own status page": ("/nginx_status", "GET", "404", "200|4.."),
        "nginx's own error page": ("/.400", "GET", "404", "404"),
        "TRACE": ("/status", "TRACE", "405", "405"),
        "a method that nobody knows": ("/status", "BREW", "405|404", "405|404"),
        "a path out of the root": ("/../x", "GET", "404|400", "404|400"),
        "an escaped slash": ("/kv/{bucket}/a%2Fb", "GET", "400|404", "400|404"),
    }
    return [
        Case("hidden body", name, _get(target, f"{smuggler}|{CLOSE}", method=method) + NEXT,
             direct, chain)
        for name, (target, method, direct, chain) in targets.items()
    ] + [
        Case("hidden body", "Connection names Content-Length",
             _get("/status", f"Connection: close, content-length|{smuggler}") + NEXT, "200", "200"),
        Case("hidden body", "Connection names Transfer-Encoding",
             _put("Connection: close, transfer-encoding|Transfer-Encoding: chunked",
                  CHUNKED + NEXT),
             "411", "200", leaves=b"abc"),
        Case("hidden body", "upgrade to h2c",
             _get("/status", "Connection: Upgrade, HTTP2-Settings, close|Upgrade: h2c"
                  f"|HTTP2-Settings: AAMAAABkAAQAAP__|{smuggler}") + NEXT, "200", "200"),
        Case("hidden body", "upgrade to websocket",
             _get("/status", f"Connection: Upgrade, close|Upgrade: websocket|{smuggler}") + NEXT,
             "200", "200"),
    ]  # fmt: skip


def _transfer_encoding() -> list[Case]:
    odd = {
        "identity": "Transfer-Encoding: identity",
        "identity, chunked": "Transfer-Encoding: identity, chunked",
        "gzip, chunked": "Transfer-Encoding: gzip, chunked",
        "chunked, identity": "Transfer-Encoding: chunked, identity",
        "chunked, chunked": "Transfer-Encoding: chunked, chunked",
        "xchunked": "Transfer-Encoding: xchunked",
        "chunkedx": "Transfer-Encoding: chunkedx",
        "quoted": 'Transfer-Encoding: "chunked"',
        "parameter": "Transfer-Encoding: chunked;q=1",
        "vertical tab": "Transfer-Encoding: \x0bchunked",
        "trailing vertical tab": "Transfer-Encoding: chunked\x0b",
        "NUL": "Transfer-Encoding: chunked\0",
        "DEL": "Transfer-Encoding: chunked\x7f",
        "no-break space": "Transfer-Encoding: \xa0chunked",
        "comma before": "Transfer-Encoding: ,chunked",
        "empty": "Transfer-Encoding: ",
        "space before the colon": "Transfer-Encoding : chunked",
        "tab before the colon": "Transfer-Encoding\t: chunked",
        "folded": "Transfer-Encoding:\r\n chunked",
        "folded name": " Transfer-Encoding: chunked",
        "bare CR before it": "X: y\rTransfer-Encoding: chunked",
        "bare LF before it": "X: y\nTransfer-Encoding: chunked",
        "twice": "Transfer-Encoding: chunked|Transfer-Encoding: chunked",
        "twice, identity last": "Transfer-Encoding: chunked|Transfer-Encoding: identity",
        "twice, cow first": "Transfer-Encoding: cow|Transfer-Encoding: chunked",
        "with Content-Length": "Content-Length: 3|Transfer-Encoding: chunked",
        "with Content-Length after it": "Transfer-Encoding: chunked|Content-Length: 3",
        "with two Content-Lengths": "Content-Length: 3|Content-Length: 5"
        "|Transfer-Encoding: chunked",
    }
    cases = [
        Case("Transfer-Encoding", name, _put(fields, CHUNKED + NEXT), REFUSED, r"4\d\d|501")
        for name, fields in odd.items()
        if name != "bare LF before it"
    ] + [
        # For nginx a LF alone ends a line: then it is a field like any other.
        Case("Transfer-Encoding", "bare LF before it", _put(odd["bare LF before it"],
             CHUNKED + NEXT), REFUSED, "200 404", leaves=b"abc")
    ]  # fmt: skip
    return [
        *cases,
        Case("Transfer-Encoding", "underscore in the name",
             _put(f"Transfer_Encoding: chunked|Content-Length: 3|{CLOSE}", b"abc" + NEXT),
             "400", "200|400", leaves=b"abc"),
        Case("Transfer-Encoding", "HTTP/1.0", _put("Transfer-Encoding: chunked", CHUNKED + NEXT,
             version="1.0"), REFUSED, REFUSED),
        Case("Transfer-Encoding", "TE.0: OPTIONS",
             _get(MISSING, f"Transfer-Encoding: chunked|{CLOSE}", method="OPTIONS")
             + b"{next_size}\r\n" + NEXT + b"\r\n0\r\n\r\n", "411|405", "405"),
        Case("Transfer-Encoding", "TE.0: GET", _get(MISSING, f"Transfer-Encoding: chunked|{CLOSE}")
             + b"{next_size}\r\n" + NEXT + b"\r\n0\r\n\r\n", "411|404", "404"),
        Case("Transfer-Encoding", "CL.TE", _put("Content-Length: 6|Transfer-Encoding: chunked",
             b"0\r\n\r\nG" + NEXT), REFUSED, REFUSED),
        Case("Transfer-Encoding", "TE.CL", _put("Content-Length: 4|Transfer-Encoding: chunked",
             b"{next_size}\r\n" + NEXT + b"\r\n0\r\n\r\n"), REFUSED, REFUSED),
        Case("Transfer-Encoding", "chunked, as it should be",
             _put(f"Transfer-Encoding: chunked|{CLOSE}", CHUNKED), "411", "200", leaves=b"abc"),
        Case("Transfer-Encoding", "Chunked in capitals",
             _put(f"Transfer-Encoding: CHUNKED|{CLOSE}", CHUNKED), "411", "200", leaves=b"abc"),
    ]  # fmt: skip


def _chunks() -> list[Case]:
    """Bodies in chunks, for nginx to judge; the service takes none."""
    bad = {
        "size 0x3": b"0x3\r\nabc\r\n0\r\n\r\n",
        "size +3": b"+3\r\nabc\r\n0\r\n\r\n",
        "size -3": b"-3\r\nabc\r\n0\r\n\r\n",
        "size of 17 digits": b"F0000000000000003\r\nabc\r\n0\r\n\r\n",
        "size with underscore": b"0_3\r\nabc\r\n0\r\n\r\n",
        "no size": b"\r\nabc\r\n0\r\n\r\n",
        "data longer than the size": b"2\r\nabc\r\n0\r\n\r\n",
        "data not ended": b"3\r\nabc0\r\n\r\n",
        "bare CR after the size": b"3\rabc\r\n0\r\n\r\n",
        "ended early": b"5\r\nabc",
    }
    cases = [
        Case("chunks", name, _put(f"Transfer-Encoding: chunked|{CLOSE}", body + NEXT),
             "411", "400|close", finish=True)
        for name, body in bad.items()
    ]  # fmt: skip
    # What nginx reads in either way, as long as one reader alone ever reads it (it sends on a
    # Content-Length) and {next} is not reached.
    either = {
        "extension": b"3;a=b\r\nabc\r\n0\r\n\r\n",
        "extension, quoted": b'3;a="b\\"c"\r\nabc\r\n0\r\n\r\n',
        "extension, empty": b"3;\r\nabc\r\n0\r\n\r\n",
        "extension of 20 kB": b"3;a=" + b"b" * 20_000 + b"\r\nabc\r\n0\r\n\r\n",
        "LF in an extension": b"3;a\nabc\r\n0\r\n\r\n",
        "CR in an extension": b"3;a\rb\r\nabc\r\n0\r\n\r\n",
        "LF alone ends lines": b"3\nabc\n0\n\n",
        "space after the size": b"3 \r\nabc\r\n0\r\n\r\n",
        "tab after the size": b"3\t\r\nabc\r\n0\r\n\r\n",
        "leading zeros": b"0000003\r\nabc\r\n0\r\n\r\n",
        "trailer": b"3\r\nabc\r\n0\r\nX: y\r\n\r\n",
        "trailer with Content-Length": b"3\r\nabc\r\n0\r\nContent-Length: 50\r\n\r\n",
        "trailer with Transfer-Encoding": b"3\r\nabc\r\n0\r\nTransfer-Encoding: x\r\n\r\n",
        "last chunk has an extension": b"3\r\nabc\r\n0;x\r\n\r\n",
    }
    return cases + [
        Case("chunks", name, _put(f"Transfer-Encoding: chunked|{CLOSE}", body + NEXT),
             "411", "200|400", leaves=b"abc")
        for name, body in either.items()
    ]  # fmt: skip


def _expect() -> list[Case]:
    body = b"abc"
    return [
        Case("Expect", "100-continue, body sent at once",
             _put(f"Content-Length: 3|Expect: 100-continue|{CLOSE}", body), "200", "200",
             leaves=body),
        Case("Expect", "capitals", _put(f"Content-Length: 3|Expect: 100-Continue|{CLOSE}", body),
             "200", "200", leaves=body),
        Case("Expect", "without a body", _get("/status", f"Expect: 100-continue|{CLOSE}"),
             "200", "200"),
        Case("Expect", "GET with a hidden body", _get("/status", "Expect: 100-continue"
             f"|Content-Length: {{next_length}}|{CLOSE}") + NEXT, "200", "200"),
        Case("Expect", "obfuscated", _put("Content-Length: 3|Expect: y 100-continue", body + NEXT),
             "417", "417|200 404", leaves=body),
        Case("Expect", "unknown", _put("Content-Length: 3|Expect: milk", body + NEXT), "417",
             "417|200 404", leaves=body),
        Case("Expect", "twice", _put("Content-Length: 3|Expect: 100-continue|Expect: 100-continue"
             f"|{CLOSE}", body), "200|4..", "200|4.."),
        Case("Expect", "with Transfer-Encoding", _put("Transfer-Encoding: chunked|"
             f"Expect: 100-continue|{CLOSE}", CHUNKED), "411", "200", leaves=body),
        Case("Expect", "illegal key, body withheld",
             b"PUT /kv/{bucket}/a%2Fb HTTP/1.1\r\nHost: poky\r\nContent-Length: 300000\r\n"
             b"Expect: 100-continue\r\n\r\n", "400|404", "100 4..|4..|close", finish=True),
    ]  # fmt: skip


def _request_lines() -> list[Case]:
    bad = {
        "HTTP/0.9": b"GET /status\r\n\r\n",
        "no version": b"GET /status \r\nHost: poky\r\n\r\n",
        "HTTP/2.0": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "HTTP/3.0": b"GET /status HTTP/3.0\r\nHost: poky\r\n\r\n",
        "HTTP/1.10": b"GET /status HTTP/1.10\r\nHost: poky\r\n\r\n",
        "http/1.1": b"GET /status http/1.1\r\nHost: poky\r\n\r\n",
        "two spaces": b"GET  /status  HTTP/1.1\r\nHost: poky\r\n\r\n",
        "tabs": b"GET\t/status\tHTTP/1.1\r\nHost: poky\r\n\r\n",
        "lower-case method": b"get /status HTTP/1.1\r\nHost: poky\r\n\r\n",
        "CONNECT": b"CONNECT poky:80 HTTP/1.1\r\nHost: poky:80\r\n\r\n",
        "OPTIONS *": b"OPTIONS * HTTP/1.1\r\nHost: poky\r\n\r\n",
        "no slash": b"GET status HTTP/1.1\r\nHost: poky\r\n\r\n",
        "NUL in the target": b"GET /kv/{bucket}/a\0b HTTP/1.1\r\nHost: poky\r\n\r\n",
        "bare CR in the line": b"GET /status HTTP/1.1\rHost: poky\r\n\r\n",
        "LF in the target": b"GET /sta\ntus HTTP/1.1\r\nHost: poky\r\n\r\n",
        "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        "URI of 64 KiB": b"GET /kv/{bucket}/" + b"x" * 65536 + b" HTTP/1.1\r\nHost: poky\r\n\r\n",
    }
    return [
        Case("request line", name, data + NEXT, r"4\d\d|505", r"4\d\d|505|close|200 404")
        if name in ("two spaces", "bare CR in the line", "HTTP/0.9", "HTTP/1.10")
        else Case("request line", name, data + NEXT, r"4\d\d|505", r"4\d\d|505|close")
        for name, data in bad.items()
    ] + [
        Case("request line", "HTTP/1.2", b"GET /status HTTP/1.2\r\nHost: poky\r\n"
             b"Connection: close\r\n\r\n", "200|505", "200|505"),
        Case("request line", "8-bit target", _get("/kv/{bucket}/\xe9", CLOSE), "400", "400"),
        Case("request line", "fragment", _get("/status#x", CLOSE), "400|404", "400|404|200"),
        Case("request line", "absolute form", _get("http://poky/status", CLOSE), "200", "200"),
        Case("request line", "absolute form, another host", _get("http://other/status", CLOSE),
             "200|400", "200|400"),
        Case("request line", "empty lines before it", b"\r\n" + _get("/status", CLOSE),
             "200", "200"),
        Case("request line", "TRACE", _get("/status", CLOSE, method="TRACE"), "405", "405"),
        Case("request line", "PURGE",
             _get("/kv/{bucket}/{key}", f"X-Forwarded-For: 127.0.0.1|{CLOSE}", method="PURGE"),
             "405", "405"),
        Case("request line", "three in a row", _get("/status") * 2 + _get("/status", CLOSE),
             "200 200 200", "200 200 200"),
    ]  # fmt: skip


def _fields() -> list[Case]:
    bad = {
        "no Host": (b"GET /status HTTP/1.1\r\n\r\n", REFUSED),
        "two Hosts": (_get("/status", "Host: other"), REFUSED),
        "Host with a space": (_get("/status", host="Host: a b"), REFUSED),
        "Host with an at sign": (_get("/status", host="Host: a@b"), r"4\d\d|200 404"),
        "Host with a slash": (_get("/status", host="Host: a/b"), REFUSED),
        "Host of half a bracket": (_get("/status", host="Host: [::1"), r"4\d\d|200 404"),
        "empty name": (_get("/status", ": x"), REFUSED),
        "no colon": (_get("/status", "nothing"), r"4\d\d|200 404"),
        "8-bit name": (_get("/status", "X\xe9: x"), r"4\d\d|200 404"),
        "space in the name": (_get("/status", "X Y: x"), REFUSED),
        "folded": (_get("/status", "X: y\r\n z"), REFUSED),
        "first line is folded": (_get("/status", host=" Host: poky"), REFUSED),
        "NUL in a value": (_get("/status", "X: a\0b"), REFUSED),
        "CR in a value": (_get("/status", "X: a\rb"), REFUSED),
        "one of 1 MiB": (_get("/status", "X: " + "x" * 1048576), r"4\d\d"),
        "10,000 of them": (_get("/status", "|".join(f"X{n}: x" for n in range(10000))), r"4\d\d"),
        "121 of them": (_get("/status", "|".join(f"X{n}: x" for n in range(121))), r"4\d\d( 404)?"),
        "1,024 tags": (_get("/kv/{bucket}/{key}", "If-None-Match: " + ",".join(['""'] * 1024)),
                       r"4\d\d"),
    }  # fmt: skip
    return [
        Case("fields", name, data + NEXT, REFUSED, chain)
        for name, (data, chain) in bad.items()
        if name != "1,024 tags"
    ] + [
        Case("fields", "1,024 tags", _get("/kv/{bucket}/{key}", "If-None-Match: "
             + ",".join(['""'] * 1024) + f"|{CLOSE}"), r"4\d\d", r"4\d\d"),
        Case("fields", "1,000 ranges", _get("/kv/{bucket}/canary", "Range: bytes="
             + ",".join(f"{n}-{n}" for n in range(1000)) + f"|{CLOSE}"), "200", "200|416|431"),
        Case("fields", "Cookie, X-Original-URL, X-HTTP-Method-Override", _get(MISSING,
             f"Cookie: a=b|X-Original-URL: /status|X-HTTP-Method-Override: PUT|{CLOSE}"),
             "404", "404"),
    ]  # fmt: skip


def _paths() -> list[Case]:
    bad = {
        "%00": "/kv/{bucket}/a%00b", "%0a": "/kv/{bucket}/a%0ab", "%0d%0a": "/kv/{bucket}/%0d%0aX",
        "dot": "/kv/{bucket}/.", "dots": "/kv/{bucket}/..", "escaped dots": "/kv/{bucket}/%2e%2e",
        "escaped slash": "/kv/{bucket}/a%2fb", "two slashes": "//kv/{bucket}/x",
        "half an escape": "/kv/{bucket}/a%2", "no escape": "/kv/{bucket}/a%zz",
        "Arabic digit": "/kv/{bucket}/%D9%A3", "invalid UTF-8": "/kv/{bucket}/%ff%fe",
        "overlong slash": "/kv/{bucket}/..%c0%af..", "backslash": "/kv/{bucket}/..\\x",
        "key of 3,000": "/kv/{bucket}/" + "k" * 3000, "trailing newline": "/kv/{bucket}/x%0a",
    }  # fmt: skip
    return [
        Case("path", name, _get(path, CLOSE, method=method), "400|404", "400|404", leaves=None)
        for name, path in bad.items()
        for method in ("GET", "DELETE")
    ]


CASES = (
    *_content_length(),
    *_hidden_bodies(),
    *_transfer_encoding(),
    *_chunks(),
    *_expect(),
    *_request_lines(),
    *_fields(),
    *_paths(),
)
