"""HTTP dates, entity tags and preconditions: text in, the words that poky.put understands out.

Knows RFC 9110 and the seed's rules; knows nothing of requests, answers or PostgreSQL.
A condition becomes ``None`` (not there), ``"*"``, or comma-separated entity tags
(``revision-hash``) and dates (``@seconds``), as ``sql/functions`` takes them.
"""

import re
import time
from calendar import timegm
from contextlib import suppress
from functools import lru_cache

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DAY = "(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_LONG_DAY = "(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day"
_MONTH = "(?P<month>" + "|".join(_MONTHS) + ")"
_TIME = r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
# RFC 9110 5.6.7: IMF-fixdate (RFC 1123's formatters omit the zero of a day), and the two obsolete
# forms that a recipient must accept.
_DATE_FORMS = tuple(
    re.compile(form)
    for form in (
        rf"{_DAY}, (?P<day>[0-9]{{1,2}}) {_MONTH} (?P<year>[0-9]{{4}}) {_TIME} GMT",
        rf"{_LONG_DAY}, (?P<day>[0-9]{{2}})-{_MONTH}-(?P<year>[0-9]{{2}}) {_TIME} GMT",
        rf"{_DAY} {_MONTH} (?P<day>[0-9 ][0-9]) {_TIME} (?P<year>[0-9]{{4}})",
    )
)
# RFC 9110 8.8.3, and the seed's date in quotes, which has spaces.
_TAG = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\xff]*|[A-Za-z0-9:, -]*)"')
_OUR_TAG = re.compile(r"[0-9]{1,19}-[0-9a-f]{8}")


@lru_cache(maxsize=4096)
def format_date(seconds: int) -> str:
    """Whole seconds since 1970 as an IMF-fixdate (RFC 9110 5.6.7)."""
    year, month, day, hour, minute, second, weekday, *_ = time.gmtime(seconds)
    return (
        f"{_DAYS[weekday]}, {day:02} {_MONTHS[month - 1]} {year:04} "
        f"{hour:02}:{minute:02}:{second:02} GMT"
    )


def parse_date(text: str) -> int:
    """An HTTP-date in any of its three forms as whole seconds since 1970 (RFC 9110 5.6.7).

    Raises ValueError for anything else; the weekday is not compared with the date.
    """
    text = text.strip(" \t")
    for form in _DATE_FORMS:
        match = form.fullmatch(text)
        if match:
            return _seconds(**match.groupdict())
    raise ValueError("not an HTTP-date such as Sun, 06 Nov 1994 08:49:37 GMT")


def _seconds(day: str, month: str, year: str, hour: str, minute: str, second: str) -> int:
    full_year = int(year)
    if len(year) == 2:
        # More than 50 years ahead means the most recent past year with these digits.
        this_year = time.gmtime().tm_year
        full_year += this_year - this_year % 100
        if full_year > this_year + 50:
            full_year -= 100
    if full_year < 1:
        raise ValueError("no such date")
    number = _MONTHS.index(month) + 1
    when = timegm((full_year, number, int(day), int(hour), int(minute), int(second)))
    # timegm carries 30 Feb over into March: such a date is not one. 60 is a leap second.
    if (
        time.gmtime(when - (1 if second == "60" else 0))[:5]
        != (full_year, number, int(day), int(hour), int(minute))
        or int(second) > 60
    ):
        raise ValueError("no such date")
    return when


def format_tag(revision: int, hash: str) -> str:
    """The strong entity tag of an object (RFC 9110 8.8.3)."""
    return f'"{revision}-{hash}"'


def parse_if_match(text: str) -> str:
    """If-Match for writes and reads: tags compare strongly, the seed's dates as dates.

    A weak tag never matches (RFC 9110 13.1.1). A date stands in quotes, in a list, or alone.
    Raises ValueError for anything else.
    """
    if '"' not in text:
        with suppress(ValueError):
            return f"@{parse_date(text)}"
    return _parse_tags(text, strong=True)


def parse_if_none_match(text: str) -> str:
    """If-None-Match: tags compare weakly (RFC 9110 13.1.2). Raises ValueError as If-Match.

    A date never matches: modified_at may stand still while the value changes.
    """
    return _parse_tags(text, strong=False)


def _parse_tags(text: str, *, strong: bool) -> str:
    text = text.strip(" \t")
    if text == "*":
        return "*"
    words = []
    position, separated = 0, True
    while position < len(text):
        if text[position] in " \t":
            position += 1
        elif text[position] == ",":
            position, separated = position + 1, True
        else:
            match = _TAG.match(text, position)
            if not match or not separated:
                raise ValueError("not a list of entity tags")
            words += _word(match[2], weak=bool(match[1]), strong=strong)
            position, separated = match.end(), False
    if not words and '"' not in text:
        raise ValueError("not a list of entity tags")
    return ",".join(words)


def _word(tag: str, *, weak: bool, strong: bool) -> list[str]:
    """What PostgreSQL compares: tags of the service's form, and dates; nothing else can match."""
    if weak and strong:
        return []
    if _OUR_TAG.fullmatch(tag):
        return [tag]
    if not strong:
        return []
    try:
        return [f"@{parse_date(tag)}"]
    except ValueError:
        return []


def matches(condition: str, revision: int, hash: str, modified_at: int) -> bool:
    """Whether an object is among those that a parsed condition names."""
    if condition == "*":
        return True
    words = condition.split(",")
    return f"{revision}-{hash}" in words or f"@{modified_at}" in words
