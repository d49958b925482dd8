"""Settings: defaults, the seed's names, refusals as sentences, secrets masked."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path

import pytest

from poky import __version__
from poky.config import Config, ConfigError, mask, unknown_settings
from poky.forms import CacheNode


def problems(**env: str) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        Config.from_env(env)
    return refused.value.problems


def test_defaults() -> None:
    config = Config.from_env({})
    assert (config.listen, config.port, config.admin_port, config.lease_port) == (
        "127.0.0.1",
        8081,
        9081,
        10081,
    )
    assert config.max_value_bytes == 16 * 1024 * 1024
    assert config.max_future_seconds == 48 * 3600
    assert config.pool_size == config.threads + 4
    assert config.caches == ()


def test_control_is_named_only_where_databases_reach_each_other() -> None:
    one = {"POKY_DSN": "postgresql://h/d", "POKY_SHARDS": "2=postgresql://b/d 1=postgresql://a/d"}
    config = Config.from_env({**one, "POKY_MOVE_SHARDS": "0=postgresql://c/d"})
    assert [each.number for each in config.shards] == [1, 2]
    assert [each.number for each in config.move_shards] == [0]
    (problem,) = problems(**one | {"POKY_SHARDS": "0=postgresql://u:secret@h/d"})
    assert "the number 1 to 255" in problem
    (problem,) = problems(**one, POKY_MOVE_SHARDS="256=postgresql://u:secret@h/d")
    assert "the number 0 to 255" in problem
    assert "secret" not in problem


def test_the_seeds_names_are_understood() -> None:
    config = Config.from_env(
        {
            "DATABASE_URL": "postgresql://h/d",
            "MAX_THREADS": "8",
            "MAX_POOL_SIZE": "9",
            "LOG_LEVEL": "WARN",
            "STATSD_HOST": "stats:8125",
            "STATSD_KEY_BASE": "poky.dev",
            "VARNISH_PURGE_HOST": "cache",
            "VARNISH_PURGE_PORT": "6091",
        }
    )
    assert (config.dsn, config.threads, config.pool_size) == ("postgresql://h/d", 8, 9)
    assert (config.log_level, config.statsd_host) == ("warning", "stats:8125")
    assert config.statsd_key_base == "poky.dev"
    assert config.caches == (CacheNode("", "http://cache:6091"),)


def test_ours_win_over_the_seeds() -> None:
    assert Config.from_env({"POKY_THREADS": "2", "MAX_THREADS": "8"}).threads == 2


def test_the_command_line_wins_over_the_environment() -> None:
    assert Config.from_env({"POKY_PORT": "1000"}, port=9000, dsn=None).port == 9000


def test_secrets_come_from_systemds_credentials(tmp_path: Path) -> None:
    (tmp_path / "poky_dsn").write_text("postgresql://secret@h/d\n")
    (tmp_path / "poky_owner_dsn").write_text("postgresql://owner@h/d\n")
    config = Config.from_env({"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert (config.dsn, config.owner_dsn) == ("postgresql://secret@h/d", "postgresql://owner@h/d")
    named = Config.from_env({"CREDENTIALS_DIRECTORY": str(tmp_path), "POKY_DSN": "host=x"})
    assert named.dsn == "host=x"


def test_a_number_that_is_none_or_beyond_all_use_is_refused() -> None:
    """NaN is neither below nor above a bound."""
    many = "9" * 16
    assert problems(
        POKY_LEASE_SECONDS="nan", POKY_SHUTDOWN_TIMEOUT="inf", POKY_MAX_FUTURE_SECONDS=many
    ) == [
        f"POKY_MAX_FUTURE_SECONDS: “{many}” is not a whole number.",
        "POKY_SHUTDOWN_TIMEOUT: “inf” is not a number.",
        "POKY_LEASE_SECONDS: “nan” is not a number.",
    ]


def test_all_problems_are_reported_at_once() -> None:
    said = problems(
        POKY_PORT="0",
        POKY_THREADS="many",
        POKY_CACHE_MODE="wild",
        POKY_CACHES="a=ftp://x",
        POKY_MAX_VALUE_BYTES="200000000",
    )
    assert [sentence.split(":")[0] for sentence in said] == [
        "POKY_PORT",
        "POKY_THREADS",
        "POKY_MAX_VALUE_BYTES",
        "POKY_CACHES",
        "POKY_CACHE_MODE",
    ]
    assert all(sentence.endswith(".") for sentence in said)


def test_combinations_that_cannot_work_are_refused() -> None:
    assert "must differ" in problems(POKY_ADMIN_PORT="8081")[0]
    assert "65535" in problems(POKY_PORT="65000")[0]
    assert "POKY_MAX_INFLIGHT_BYTES" in problems(POKY_MAX_INFLIGHT_BYTES="1000")[0]
    assert "POKY_LOCK_TIMEOUT" in problems(POKY_LOCK_TIMEOUT="9", POKY_STATEMENT_TIMEOUT="2")[0]
    assert "POKY_PURGE_TIMEOUT" in problems(POKY_PURGE_TIMEOUT="2", POKY_LEASE_SECONDS="3")[0]
    assert Config.from_env({"POKY_PURGE_TIMEOUT": "2", "POKY_LEASE_SECONDS": "4"})


def test_caches() -> None:
    config = Config.from_env({"POKY_CACHES": "a=http://10.0.0.1:6091 b=http://10.0.0.2:6091/"})
    assert config.caches == (
        CacheNode("a", "http://10.0.0.1:6091"),
        CacheNode("b", "http://10.0.0.2:6091"),
    )
    assert "twice" in problems(POKY_CACHES="a=http://x:1 b=http://x:1")[0]


def test_each_default_can_be_written_down() -> None:
    for each in fields(Config):
        if isinstance(each.default, str | int | float):
            Config.from_env({f"POKY_{each.name.upper()}": f"{each.default}"})


def test_the_release_is_the_deployed_ones_or_the_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    assert Config.from_env({}).release == __version__
    (tmp_path / "RELEASE").write_text("0.1.0+abc\n")
    assert Config.from_env({}).release == "0.1.0+abc"
    assert Config.from_env({"POKY_RELEASE": "mine"}).release == "mine"


def test_what_is_shown_of_a_setting_sets_it_again() -> None:
    config = Config.from_env(
        {
            "POKY_CACHES": "a=http://10.0.0.1:6091 http://10.0.0.2:6091",
            "POKY_DSN": "postgresql://u@control/poky",
            "POKY_SHARDS": "1=postgresql://u@one/poky 2=postgresql://u@two/poky",
            "POKY_ADMIN_HOSTS": "metrics.example [::1]",
            "POKY_CORS_ORIGINS": "https://app.example",
            "POKY_PURGE_TIMEOUT": "0.25",
        }
    )
    shown = config.shown()
    assert shown["POKY_CACHES"] == "a=http://10.0.0.1:6091 http://10.0.0.2:6091"
    assert Config.from_env(shown) == config


@pytest.mark.parametrize(
    ("dsn", "masked"),
    [
        ("postgresql://u:pw@h:5432/d", "postgresql://u:***@h:5432/d"),
        ("postgresql://u@h/d?password=pw&x=1", "postgresql://u@h/d?password=***&x=1"),
        ("host=h password=pw user=u", "host=h password=*** user=u"),
        (r"password='p w\'x' host=h", "password=*** host=h"),
        ("postgresql://u:p@w@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u@h/d?sslpassword=pw", "postgresql://u@h/d?sslpassword=***"),
        ("postgresql://u@h/d?x=1&sslpassword=pw&y=2", "postgresql://u@h/d?x=1&sslpassword=***&y=2"),
        ("host=h sslpassword = 'p w' sslkey=/k", "host=h sslpassword = *** sslkey=/k"),
        ("host=h sslpassword=a password=b", "host=h sslpassword=*** password=***"),
        (
            "host=h oauth_client_secret=s scram_client_key=k",
            "host=h oauth_client_secret=*** scram_client_key=***",
        ),
        ("postgresql://h/d", "postgresql://h/d"),
        ("", ""),
    ],
)
def test_passwords_are_masked(dsn: str, masked: str) -> None:
    assert mask(dsn) == masked


def test_an_unknown_setting_is_a_warning_with_a_hint() -> None:
    (said,) = unknown_settings({"POKY_THREDS": "4", "POKY_PORT": "1", "OTHER": "x"})
    assert "POKY_THREDS" in said
    assert "POKY_THREADS" in said


def test_origins_are_as_browsers_write_them() -> None:
    config = Config.from_env(
        {
            "POKY_CORS_ORIGINS": "HTTPS://App.example:443  http://[::1]:80 http://a:8080 http://a:8080",
            "POKY_ADMIN_HOSTS": "Metrics.example [::1]",
        }
    )
    assert config.cors_origins == ("https://app.example", "http://[::1]", "http://a:8080")
    assert config.admin_hosts == ("metrics.example", "[::1]")
    assert Config.from_env({"POKY_CORS_ORIGINS": " * "}).cors_origins == ("*",)
    assert config.shown()["POKY_ADMIN_HOSTS"] == "metrics.example [::1]"


@pytest.mark.parametrize(
    "wrong", ["null", "app.example", "https://", "https://a/", "https://a/b", "https://u@a", "*.a"]
)
def test_what_is_no_origin_is_named(wrong: str) -> None:
    (said,) = problems(POKY_CORS_ORIGINS=f"https://fine {wrong} also,wrong")
    assert said.startswith(f"POKY_CORS_ORIGINS: “{wrong}”, “also,wrong” are not scheme://host")
    (said,) = problems(POKY_ADMIN_HOSTS="fine http://wrong wrong:80")
    assert said.startswith("POKY_ADMIN_HOSTS: “http://wrong”, “wrong:80” are not a name")


def test_every_origin_stands_alone() -> None:
    (said,) = problems(POKY_CORS_ORIGINS="https://fine *")
    assert said == (
        "POKY_CORS_ORIGINS: “*” is not scheme://host or scheme://host:port, or * alone."
    )


@pytest.mark.parametrize("name", ["POKY_SHARDS", "POKY_OWNER_SHARDS"])
def test_databases_more_need_the_one_that_knows_where_buckets_are(name: str) -> None:
    said = problems(**{name: "1=postgresql://h/d"})
    assert any("POKY_SHARDS: needs POKY_DSN" in problem for problem in said), said


def test_what_may_be_said_is_listed() -> None:
    assert problems(POKY_ACCESS="maybe") == ["POKY_ACCESS: “maybe” is not one of open, tokens."]
    (said,) = problems(POKY_CACHE_MODE="fast")
    assert said.endswith("is not one of lease, revalidate, bounded.")
