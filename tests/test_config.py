"""Settings: defaults, the seed's names, refusals as sentences, secrets masked."""

from __future__ import annotations

import socket
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from poky import __version__
from poky.config import Config, ConfigError, data_folder, mask, unknown_settings, url_of
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


BOUNDED = [
    each
    for each in fields(Config)
    if each.metadata["at_least"] is not None or each.metadata["at_most"] is not None
]


@pytest.mark.parametrize("each", BOUNDED, ids=lambda each: each.name)
def test_a_bound_belongs_to_what_is_allowed(each: Any) -> None:
    name = f"POKY_{each.name.upper()}"

    def refused(value: float) -> list[str]:
        try:
            Config.from_env({name: f"{value}"})
        except ConfigError as error:
            return [said for said in error.problems if said.startswith(f"{name}: {value} must be")]
        return []

    step = 1 if each.type is int else 0.01
    least, most = each.metadata["at_least"], each.metadata["at_most"]
    if least is not None:
        assert refused(least) == []
        below = least - step
        assert refused(below) == [f"{name}: {below} must be at least {least:g}."]
    if most is not None:
        assert refused(most) == []
        above = most + step
        assert refused(above) == [f"{name}: {above} must be at most {most:g}."]


def test_a_number_is_of_its_kind() -> None:
    assert problems(POKY_THREADS="1.5") == ["POKY_THREADS: “1.5” is not a whole number."]
    assert problems(POKY_LEASE_SECONDS="ten") == ["POKY_LEASE_SECONDS: “ten” is not a number."]
    assert Config.from_env({"POKY_THREADS": " 3 "}).threads == 3
    assert Config.from_env({"POKY_MAX_FUTURE_SECONDS": "9" * 15}).max_future_seconds == 10**15 - 1


def test_what_follows_from_other_settings() -> None:
    config = Config.from_env({"POKY_DSN": "host=a", "POKY_SHARDS": "1=postgresql://b/d"})
    assert config.max_inflight_bytes == (4 * 4 + 1) * 16 * 1024**2
    assert config.max_answer_bytes == config.max_batch_bytes
    assert (config.owner_dsn, config.owner_shards) == ("host=a", config.shards)
    assert (config.lease_listen, config.home) == ("127.0.0.1", str(data_folder()))
    assert config.instance == f"{socket.gethostname()}:8081"
    given = Config.from_env(
        {
            "POKY_THREADS": "2",
            "POKY_MAX_VALUE_BYTES": "1000",
            "POKY_MAX_BATCH_BYTES": "3000",
            "POKY_LISTEN": "127.0.0.2",
            "POKY_PORT": "2000",
        }
    )
    assert (given.max_inflight_bytes, given.max_answer_bytes) == (27_000, 3000)
    assert (given.lease_listen, given.admin_listen) == ("127.0.0.2", "127.0.0.1")
    assert (given.admin_port, given.lease_port, given.pool_size) == (3000, 4000, 6)
    own = {
        "POKY_MAX_INFLIGHT_BYTES": "20000000",
        "POKY_MAX_ANSWER_BYTES": "7",
        "POKY_ADMIN_PORT": "7000",
        "POKY_LEASE_PORT": "7001",
        "POKY_LEASE_LISTEN": "::1",
        "POKY_POOL_SIZE": "3",
        "POKY_OWNER_DSN": "host=o",
        "POKY_HOME": "/home",
        "POKY_INSTANCE": "i",
    }
    config = Config.from_env(own)
    assert {name: f"{getattr(config, name[5:].lower())}" for name in own} == own


@pytest.mark.parametrize("address", ["localhost", "::1", "127.0.0.1", "127.9.9.9"])
def test_who_reaches_loopback_alone_may_do_everything(address: str) -> None:
    config = Config.from_env({"POKY_LISTEN": address})
    assert (config.access, config.admin_objects) == ("open", "on")
    assert Config.from_env({"POKY_LISTEN": address, "POKY_ADMIN_OBJECTS": "off"}).admin_objects == (
        "off"
    )


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "10.0.0.1", "example.org", "128.0.0.1"])
def test_what_others_reach_needs_a_word_on_access(address: str) -> None:
    (said,) = problems(POKY_LISTEN=address)
    assert said.startswith(f"POKY_ACCESS: others reach {address}; say tokens, or open")
    for access, shows in (("tokens", "off"), ("open", "on")):
        config = Config.from_env({"POKY_LISTEN": address, "POKY_ACCESS": access})
        assert (config.access, config.admin_objects) == (access, shows)
    config = Config.from_env(
        {"POKY_LISTEN": address, "POKY_ACCESS": "tokens", "POKY_ADMIN_OBJECTS": "on"}
    )
    assert config.admin_objects == "on"


def test_ports_that_follow_are_ports_as_well() -> None:
    assert Config.from_env({"POKY_PORT": "63535"}).lease_port == 65535
    assert problems(POKY_PORT="63536") == [
        "POKY_LEASE_PORT: 65536 is above 65535; set it, or choose a lower POKY_PORT."
    ]
    assert problems(POKY_PORT="64536", POKY_LEASE_PORT="1") == [
        "POKY_ADMIN_PORT: 65536 is above 65535; set it, or choose a lower POKY_PORT."
    ]
    for same in (
        {"POKY_ADMIN_PORT": "10081"},
        {"POKY_LEASE_PORT": "8081"},
        {"POKY_ADMIN_PORT": "8081"},
    ):
        assert problems(**same) == ["POKY_PORT, POKY_ADMIN_PORT and POKY_LEASE_PORT: must differ."]


def test_the_edge_of_what_can_work_does() -> None:
    largest = {"POKY_MAX_VALUE_BYTES": "1000", "POKY_MAX_BATCH_BYTES": "900"}
    assert Config.from_env({**largest, "POKY_MAX_INFLIGHT_BYTES": "1000"})
    assert problems(**largest, POKY_MAX_INFLIGHT_BYTES="999")
    assert Config.from_env({"POKY_LOCK_TIMEOUT": "4"})
    assert problems(POKY_LOCK_TIMEOUT="4.1")
    assert problems(POKY_PURGE_TIMEOUT="2.1", POKY_LEASE_SECONDS="4")


def test_shards_are_the_same_to_the_owner() -> None:
    env = {"POKY_DSN": "host=a", "POKY_SHARDS": "1=postgresql://b/d 2=postgresql://c/d"}
    assert Config.from_env({**env, "POKY_OWNER_SHARDS": "2=postgresql://o/d 1=postgresql://o/e"})
    for other in ("1=postgresql://o/d", "1=postgresql://o/d 3=postgresql://o/d"):
        assert problems(**env, POKY_OWNER_SHARDS=other) == [
            "POKY_OWNER_SHARDS: must name the shards that POKY_SHARDS names."
        ]
    owner = Config.from_env({"POKY_OWNER_DSN": "host=a", "POKY_OWNER_SHARDS": "1=postgresql://b/d"})
    assert [each.number for each in owner.owner_shards] == [1]
    for wrong, word in (("x", 1), ("1=postgresql://a/d 01=postgresql://a/d", 2)):
        (said,) = problems(**{**env, "POKY_SHARDS": wrong})
        assert said.startswith(f"POKY_SHARDS: word {word} is not number=postgresql://")
    (said,) = problems(**{**env, "POKY_SHARDS": "7=postgres://a/d 7=postgresql://b/d"})
    assert said == "POKY_SHARDS: shard 7 is named twice."
    assert Config.from_env({**env, "POKY_SHARDS": "255=postgresql://a/d"})
    assert problems(**{**env, "POKY_SHARDS": "256=postgresql://a/d"})


def test_the_seed_s_cache_has_a_port_by_default_and_ours_wins() -> None:
    one = CacheNode("", "http://cache:6091")
    assert Config.from_env({"VARNISH_PURGE_HOST": "cache"}).caches == (one,)
    ours = {"VARNISH_PURGE_HOST": "cache", "POKY_CACHES": "a=http://b:1"}
    assert Config.from_env(ours).caches == (CacheNode("a", "http://b:1"),)
    (said,) = problems(VARNISH_PURGE_HOST="cache", VARNISH_PURGE_PORT="many")
    assert said.startswith("VARNISH_PURGE_HOST and VARNISH_PURGE_PORT: “http://cache:many” is not")


@pytest.mark.parametrize(
    "url",
    ["http://p:9090", "https://p", "HTTP://P:1/prefix/", "http://[::1]:9090", "http://a_b.c/x"],
)
def test_a_prometheus_is_a_url_without_a_query(url: str) -> None:
    assert Config.from_env({"POKY_PROMETHEUS_URL": url}).prometheus_url == url.rstrip("/")


@pytest.mark.parametrize(
    "url", ["p:9090", "ftp://p", "http://p:123456", "http://p/?q", "http://p/ x"]
)
def test_what_is_no_prometheus_is_named(url: str) -> None:
    assert problems(POKY_PROMETHEUS_URL=url) == [
        f"POKY_PROMETHEUS_URL: “{url}” is not http://host:port."
    ]


def test_the_folder_of_data_is_the_user_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert data_folder() == Path("/data/poky")
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", "/home/u")
    assert data_folder() == Path("/home/u/.local/share/poky")


def test_a_socket_s_url_says_how_to_reach_it() -> None:
    assert url_of("/run/a b", 1) == "--unix-socket '/run/a b' http://localhost"


def test_only_a_name_that_is_near_is_a_hint() -> None:
    assert unknown_settings({"POKY_XYZZY": "1", "POKY_PORT": "1"}) == [
        "POKY_XYZZY is no setting of this release and is ignored."
    ]


def test_settings_are_shown_as_they_are_written() -> None:
    shown = Config.from_env({"POKY_DSN": "postgresql://u:pw@h/d", "POKY_LOG_LEVEL": "WARN"}).shown()
    assert (shown["POKY_DSN"], shown["POKY_OWNER_DSN"]) == ("postgresql://u:***@h/d",) * 2
    assert (shown["POKY_POOL_TIMEOUT"], shown["POKY_LOCK_TIMEOUT"]) == ("2", "1.5")
    assert (shown["POKY_LOG_LEVEL"], shown["POKY_CACHES"]) == ("warning", "")
    secret = {"POKY_DSN": "host=a", "POKY_SHARDS": "1=postgresql://u:pw@b/d"}
    for name in ("POKY_SHARDS", "POKY_OWNER_SHARDS"):
        assert Config.from_env(secret).shown()[name] == "1=postgresql://u:***@b/d"
    move = {**secret, "POKY_MOVE_SHARDS": "0=postgresql://u:pw@b/d"}
    assert "pw" not in Config.from_env(move).shown()["POKY_MOVE_SHARDS"]


def test_the_data_folder_of_a_user_whom_the_system_does_not_know(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/of/the/user")
    assert data_folder() == Path("/of/the/user/poky")
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", "/home/user")
    assert data_folder() == Path("/home/user/.local/share/poky")
    monkeypatch.delenv("HOME")

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert data_folder() == Path("/nonexistent/poky")
