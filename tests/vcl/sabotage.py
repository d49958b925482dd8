"""Ways to break poky.vcl on purpose: each must be seen by a .vtc and, where it costs coherence, by
the coherence checker.

A sabotage is a list of exact replacements. One that no longer fits the text is an error, so that a
change of poky.vcl cannot turn a negative control into a second positive one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Sabotage:
    """What is broken, by which replacements, and the .vtc (by its beginning) that must go red."""

    sentence: str
    replacements: tuple[tuple[str, str], ...]
    caught_by: str
    file: str = "poky.vcl"


SABOTAGES = {
    "plain-purge": Sabotage(
        "PURGE removes the object; a fetch in flight is inserted after it.",
        (
            (
                '    if (req.restarts == 0 || !req.http.Poky-Key || req.http.Poky-Key == "none") {',
                """    if (req.method == "PURGE") {
        hash_data(req.url);
    } elseif (req.restarts == 0 || !req.http.Poky-Key || req.http.Poky-Key == "none") {""",
            ),
            ("hash_data(req.http.Poky-Key + req.url);", "hash_data(req.url);"),
        ),
        "10-",
    ),
    "late-copy-believed": Sabotage(
        "What was fetched under a tag of before is given away as it is.",
        (
            (
                "    if (req.restarts > 0 && obj.age < now - req.time && resp.status < 500) {",
                "    if (false) {",
            ),
        ),
        "14-",
    ),
    "copy-outlives-pass": Sabotage(
        "A read without a lease leaves the copy where it is.",
        (("    purge.hard();\n", ""),),
        "28-",
    ),
    "codings-checked": Sabotage(
        "Varnish checks that what says gzip is gzip.",
        (('    set beresp.filters = "";\n', ""),),
        "38-",
    ),
    "coding-lost": Sabotage(
        "An empty value loses its coding.",
        (("    if (resp.http.Poky-Coding) {", "    if (false) {"),),
        "38-",
    ),
    "lists-in-parts": Sabotage(
        "Varnish cuts whatever it is asked to cut.",
        ((' && req.url ~ "^/kv/[^/?]++/") {', ") {"),),
        "46-",
    ),
    "aliases-cached": Sabotage(
        "Every spelling of an object's URL is cached; a purge names only one.",
        (
            (
                """    unset req.http.Poky-Key;
    if (req.url !~ "^/kv/[A-Za-z0-9_.,-]+/[A-Za-z0-9_.,~:@=+/-]+$") {""",
                """    unset req.http.Poky-Key;
    if (req.url !~ "^/kv/") {""",
            ),
        ),
        "31-",
    ),
    "lease-from-end": Sabotage(
        "A lease counts from the end of its fetch, when its answer may be old.",
        (
            ("now - bereq.time >= beresp.grace * 10.0", "false"),
            ("now - bereq.time < beresp.grace", "true"),
            (
                "std.time2real(bereq.time + beresp.grace, 0.0)",
                "std.time2real(now + beresp.grace, 0.0)",
            ),
            (
                "beresp.grace - (now - bereq.time);\n        set",
                "beresp.grace;\n        set",
            ),
        ),
        "21-",
    ),
    "late-lease-kept": Sabotage(
        "A lease that arrives after its end loses its TTL, not its generation.",
        (("now - bereq.time >= beresp.grace * 10.0", "false"),),
        "22-",
    ),
    "failed-refresh-denies": Sabotage(
        "A refresh that fails ends the lease.",
        (("    if (bereq.is_bgfetch) {", "    if (false) {"),),
        "23-",
    ),
    "failed-refresh-storms": Sabotage(
        "Every read after a lease's first tenth tries what has just failed.",
        (("    if (bereq.is_bgfetch && std.real(", "    if (false && std.real("),),
        "27-",
    ),
    "denial-ignored": Sabotage(
        "An explicit no counts as no answer.",
        (
            (
                "    if (beresp.status == 403) {\n        call poky_beresp_lease_denied;",
                "    if (false) {\n        call poky_beresp_lease_denied;",
            ),
        ),
        "24-",
    ),
    "one-generation": Sabotage(
        "All generations are one.",
        (
            (
                """    set beresp.http.Poky-Generation = "=" + beresp.http.Poky-Generation;""",
                """    set beresp.http.Poky-Generation = "=";""",
            ),
        ),
        "25-",
    ),
    "purge-everywhere": Sabotage(
        "The listener of the clients takes PURGE too.",
        (
            (
                """    if (local.socket == "purge") {""",
                """    if (local.socket == "purge" || req.method == "PURGE") {""",
            ),
        ),
        "30-",
    ),
    "clients-vary": Sabotage(
        "Vary is stored, and what clients sent reaches the fetch.",
        (
            ("    unset beresp.http.Vary;\n", ""),
            (
                '    header.regsub(bereq, "(?i)^(?!(?:If-None-Match:|X-Request-Id: ?'
                '[A-Za-z0-9._:+/=-]{1,128}$|Traceparent: ?[0-9a-f-]{55}$)).*$",'
                ' "Poky-Dropped: 1");\n',
                "",
            ),
        ),
        "32-",
    ),
    "clients-steer": Sabotage(
        "A client's own Poky-* headers are believed.",
        (
            (
                """    if (req.restarts > 0) {\n        call""",
                """    if (req.http.Poky-Key) {\n        call""",
            ),
            ("    unset req.http.Poky-Key;\n    if (req.url", "    if (req.url"),
        ),
        "34-",
    ),
    "star-ignored": Sabotage(
        "If-None-Match: * is left to Varnish.",
        (('    } elseif (req.http.If-None-Match == "*") {', "    } elseif (false) {"),),
        "40-",
    ),
    "modified-since-believed": Sabotage(
        "If-Modified-Since is answered from Last-Modified.",
        (("    unset req.http.If-Modified-Since;\n", ""),),
        "42-",
    ),
    "range-by-date": Sabotage(
        "If-Range with a date is answered from Last-Modified.",
        (("    if (req.http.If-Range && ", "    if (false && "),),
        "44-",
    ),
    "writes-judged": Sabotage(
        "A write's If-None-Match is judged once more by the cache.",
        (
            (
                """    if (req.method != "GET" && req.method != "HEAD") {
        unset req.http.If-None-Match;""",
                """    if (false) {
        unset req.http.If-None-Match;""",
            ),
        ),
        "45-",
    ),
    "old-revalidation-hits": Sabotage(
        "Who waited for another's revalidation takes its answer.",
        (
            (
                "    call poky_mode_hit_object;\n",
                "    if (false) {\n        call poky_mode_hit_object;\n    }\n",
            ),
        ),
        "51-",
    ),
    "decision-not-purged": Sabotage(
        "PURGE /policy is confirmed, and decisions stay.",
        (
            (
                'var.global_set("poky_policy", "=" + std.time2real(now, 0.0) + "-" + req.xid);',
                "",
            ),
        ),
        "71-",
        "poky_access_tokens.vcl",
    ),
    "decision-without-lease": Sabotage(
        "A decision is found again under another lease than the one it was made under.",
        (('hash_data("access " + req.http.Poky-Policy + ', 'hash_data("access " + '),),
        "73-",
        "poky_access_tokens.vcl",
    ),
    "denied-lease-refuses": Sabotage(
        "The service's no to a lease is given to a client, whose read it is not about.",
        ((" && !resp.http.Poky-Internal", ""),),
        "84-",
        "poky_access_tokens.vcl",
    ),
    "decision-for-any-bucket": Sabotage(
        "What was decided for one bucket holds for all.",
        (
            (
                """ + regsub(req.url, "^/kv/([^/]+)/.*$", "\\1") + " " +
            req.http.Authorization""",
                " + req.http.Authorization",
            ),
        ),
        "75-",
        "poky_access_tokens.vcl",
    ),
    "failures-not-counted": Sabotage(
        "An address may guess tokens as fast as the service decides.",
        (("if (resp.status == 401) {", "if (resp.status == 499) {"),),
        "79-",
        "poky_failures.vcl",
    ),
    "body-promised": Sabotage(
        "A read is passed on with the length of a body that is not sent.",
        (("(?:Content-Length|Transfer-Encoding):.*$", "Nothing:.*$"),),
        "37-",
    ),
    "unsent-in-doubt": Sabotage(
        "A write that no instance is there for is answered as one that was sent.",
        (("if (!std.healthy(bereq.backend)) {", "if (false) {"),),
        "61-",
    ),
    "unverified-after-a-no": Sabotage(
        "A cache whose lease was refused serves copies when PostgreSQL is away after that.",
        (("beresp.status == 403", "beresp.status == 499"),),
        "86-",
        "poky_unverified.vcl",
    ),
    "unverified-for-any-reason": Sabotage(
        "Whatever the service fails for, copies are served without a lease.",
        ((' && beresp.http.Poky-Database == "away"', ""),),
        "87-",
        "poky_unverified.vcl",
    ),
    "unverified-for-ever": Sabotage(
        "Copies are served without a lease for as long as PostgreSQL is away.",
        (
            (
                '"poky_unverified_until"), 0.0) > std.time2real(now, 0.0)',
                '"poky_unverified_until"), 0.0) > 0.0',
            ),
        ),
        "85-",
        "poky_unverified.vcl",
    ),
    "unverified-without-a-copy": Sabotage(
        "What a purge took away is fetched, without a lease, and marked as a copy.",
        (('    if (req.http.Poky-Unverified && req.http.Poky-Key ~ "^=") {', "    if (false) {"),),
        "89-",
        "poky_unverified.vcl",
    ),
    "expiry-ignored": Sabotage(
        "A copy is kept as long as any other, whatever the service says is left.",
        (("    if (beresp.http.Poky-Left) {\n        call", "    if (false) {\n        call"),),
        "80-",
    ),
    "expired-for-those-who-wait": Sabotage(
        "What expired while it was fetched is given to all who wait for the fetch.",
        (
            (
                "        set beresp.ttl = 0s;\n        set beresp.keep = 0s;\n",
                "        call poky_beresp_waiters_only;\n",
            ),
        ),
        "80-",
    ),
    "expiry-from-end": Sabotage(
        "What is left counts from the end of the fetch.",
        (('"s", 0s) * 0.9 - (now - bereq.time);', '"s", 0s) * 0.9;'),),
        "80-",
    ),
    "expired-revalidated": Sabotage(
        "An expired copy is kept, to be revalidated.",
        (('if (beresp.keep > std.duration(beresp.http.Poky-Left + "s", 0s)) {', "if (false) {"),),
        "81-",
    ),
    "any-origin": Sabotage(
        "Pages of any origin are told that they may read.",
        ((' && str.contains(req.http.Poky-Origins, "|" + req.http.Origin + "|")', ""),),
        "78-",
        "poky_origins.vcl",
    ),
    "origins-kept": Sabotage(
        "What the service said of origins stays in the copy.",
        (('set beresp.http.Cross-Origin-Resource-Policy = "same-origin";', ""),),
        "78-",
        "poky_origins.vcl",
    ),
}


def sabotaged(vcl: str, name: str) -> str:
    """Return the text of its file broken in the named way; ValueError if the text has changed."""
    file = SABOTAGES[name].file
    for old, new in SABOTAGES[name].replacements:
        if vcl.count(old) != 1:
            raise ValueError(
                f"sabotage {name}: {vcl.count(old)} times in {file}, not once: {old!r}"
            )
        vcl = vcl.replace(old, new)
    return vcl


_STALL = """import vtc;

sub poky_stall {
    if (std.random(0.0, 100.0) < 1.0) {
        vtc.sleep(std.duration(real=std.random(0.0, 0.02)));
    }
}

sub vcl_purge {
    if (std.random(0.0, 1000.0) < 1.0) {
        vtc.sleep(std.duration(real=std.random(0.0, 1.0)));
    }
}
"""
_METHODS = ("recv", "hash", "hit", "miss", "pass", "purge", "deliver", "synth")
_BACKEND_METHODS = ("backend_fetch", "backend_response", "backend_error")


def stalled(vcl: str) -> str:
    """Return the text of poky.vcl, as right as before, whose threads may be held up at each step.

    One step in a hundred for up to 20 ms, and one purge in a thousand for up to a second.
    """
    methods = "".join(
        f"sub vcl_{method} {{ call poky_stall; }}\n" for method in (*_METHODS, *_BACKEND_METHODS)
    )
    head, include, rest = vcl.partition('include "poky_values.vcl";\n')
    assert include
    return head + _STALL + methods + include + held_up(rest)


def held_up(vcl: str) -> str:
    """Return VCL, as right as before, whose statements may each take their time (see stalled)."""
    return re.sub(
        r"^( +(?:set|unset|call|var|purge)\b.*;)$", r"\1 call poky_stall;", vcl, flags=re.M
    )
