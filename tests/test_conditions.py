"""HTTP dates and entity tags: RFC 9110 5.6.7, 8.8.3 and 13.1, and the seed's quoted dates."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poky.api.conditions import (
    format_date,
    matches,
    parse_date,
    parse_if_match,
    parse_if_none_match,
)


@given(st.integers(0, 4_000_000_000))
def test_dates_round_trip(seconds: int) -> None:
    assert parse_date(format_date(seconds)) == seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Sun, 06 Nov 1994 08:49:37 GMT", 784111777),
        ("Sun, 6 Nov 1994 08:49:37 GMT", 784111777),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 784111777),
        ("Sun Nov  6 08:49:37 1994", 784111777),
        (" Thu, 01 Jan 1970 00:00:00 GMT\t", 0),
        ("Fri, 30 Jun 2012 23:59:60 GMT", 1341100800),
        ("Mon, 29 Feb 2016 00:00:00 GMT", 1456704000),
    ],
)
def test_the_three_forms(text: str, seconds: int) -> None:
    assert parse_date(text) == seconds


def test_two_digit_years_are_at_most_50_years_ahead() -> None:
    year = time.gmtime().tm_year
    near, far = (year + 50) % 100, (year + 51) % 100
    assert time.gmtime(parse_date(f"Sunday, 06-Nov-{near:02} 08:49:37 GMT")).tm_year == year + 50
    assert time.gmtime(parse_date(f"Sunday, 06-Nov-{far:02} 08:49:37 GMT")).tm_year == year - 49


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "1994-11-06T08:49:37Z",
        "Sun, 006 Nov 1994 08:49:37 GMT",
        "Sun, 06 Nov 1994 08:49:37 +0000",
        "Sun, 06 Nov 1994 08:49:37 UTC",
        "sun, 06 nov 1994 08:49:37 gmt",
        "Sun, 06 Nov 1994 24:00:00 GMT",
        "Sun, 06 Nov 1994 08:49:61 GMT",
        "Sun, 31 Feb 1994 08:49:37 GMT",
        "Sun, 00 Nov 1994 08:49:37 GMT",
        "Sun, 06 Nov 0000 08:49:37 GMT",
        "Mon, 29 Feb 2015 00:00:00 GMT",
        "Sun, 06 Nov 1994 08:49:37 GMT x",
        "Sun, ٠٦ Nov 1994 08:49:37 GMT",
    ],
)
def test_anything_else_is_no_date(text: str) -> None:
    with pytest.raises(ValueError, match="date"):
        parse_date(text)


@given(st.text())
def test_whatever_comes_is_a_date_or_a_valueerror(text: str) -> None:
    for parse in (parse_date, parse_if_match, parse_if_none_match):
        with suppress(ValueError):
            parse(text)


@pytest.mark.parametrize(
    ("text", "strong", "weak"),
    [
        ("*", "*", "*"),
        ('"12-abcdef01"', "12-abcdef01", "12-abcdef01"),
        ('W/"12-abcdef01"', "", "12-abcdef01"),
        ('"a", W/"12-abcdef01" ,"13-abcdef01"', "13-abcdef01", "12-abcdef01,13-abcdef01"),
        (', "12-abcdef01",,', "12-abcdef01", "12-abcdef01"),
        ('"Tue, 04 Jun 2013 03:01:31 GMT"', "@1370314891", ""),
        ('"12-abcdef01", "Tue, 4 Jun 2013 03:01:31 GMT"', "12-abcdef01,@1370314891", "12-abcdef01"),
        ('"12-abcdef01,13-abcdef01"', "", ""),
        ('"*"', "", ""),
        ('""', "", ""),
        ('"@5"', "", ""),
    ],
)
def test_lists_of_tags(text: str, strong: str, weak: str) -> None:
    assert (parse_if_match(text), parse_if_none_match(text)) == (strong, weak)


@pytest.mark.parametrize("text", ["", " ", ",", "x", '"', '"a" "b"', '"a"b', 'w/"a"', '*, "a"'])
def test_anything_else_is_no_list(text: str) -> None:
    for parse in (parse_if_match, parse_if_none_match):
        with pytest.raises(ValueError, match="tags"):
            parse(text)


def test_what_a_condition_matches() -> None:
    assert matches("*", 7, "abcdef01", 5)
    assert matches("6-abcdef01,7-abcdef01", 7, "abcdef01", 5)
    assert matches("@5", 7, "abcdef01", 5)
    for condition in ("", "7-abcdef02", "17-abcdef01", "@6"):
        assert not matches(condition, 7, "abcdef01", 5)


@pytest.mark.parametrize(
    "text",
    ["Tue, 04 Jun 2013 03:01:31 GMT", " Tue, 4 Jun 2013 03:01:31 GMT", "Tue Jun  4 03:01:31 2013"],
)
def test_if_match_takes_a_date_without_quotes_as_the_seed_did(text: str) -> None:
    assert parse_if_match(text) == "@1370314891"
    with pytest.raises(ValueError, match="tags"):
        parse_if_none_match(text)


def test_a_date_that_cannot_be_read_is_told_with_an_example() -> None:
    with pytest.raises(ValueError, match="Sun, 06 Nov 1994 08:49:37 GMT"):
        parse_date("Sun, 06 Nov 1994 08:49:37 +0000")
