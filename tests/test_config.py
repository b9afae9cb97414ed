"""Settings: how values are written, which layer wins, and what is said of mistakes."""

import os
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvfs.config import Settings
from cvfs.config.kinds import OTHERS
from cvfs.config.layers import Configuration, config_directories, find_alone, read_configuration
from cvfs.config.notation import toml_of, write_file, write_line
from cvfs.config.settings import TABLE, default_runtime
from cvfs.config.toml_file import line_of
from cvfs.errors import ConfigError
from cvfs.mount.request import MountRequest, apply_options, decode_request, encode_request, settings_among
from cvfs.mount.sites import ConfiguredSites

NAME = "software.example.org"


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    return _directory(tmp_path / "etc")


def _directory(path: Path) -> Path:
    (path / "repositories.d").mkdir(parents=True)
    return path


def _read(*directories: Path, environment: dict[str, str] | None = None, **options: Any) -> Configuration:
    return Configuration(directories, environment or {}, options)


def _of(text: str, etc: Path, name: str | None = None) -> Settings:
    path = etc / "repositories.d" / f"{name}.toml" if name else etc / "config.toml"
    path.write_text(text)
    return _read(etc).settings(name)


def test_each_layer_is_over_the_one_before(etc: Path, tmp_path: Path) -> None:
    user = _directory(tmp_path / "user")
    seen = [_read(etc, user).settings(NAME).refresh_s]
    files = (
        "etc/config.toml",
        f"etc/repositories.d/{NAME}.toml",
        "user/config.toml",
        f"user/repositories.d/{NAME}.toml",
    )
    for number, file in enumerate(files, 1):
        (tmp_path / file).write_text(f"refresh_s = {number}\n")
        seen.append(_read(etc, user).settings(NAME).refresh_s)
    environment = {"CVFS_REFRESH_S": "5"}
    seen.append(_read(etc, user, environment=environment).settings(NAME).refresh_s)
    seen.append(_read(etc, user, environment=environment, refresh_s="6").settings(NAME).refresh_s)
    assert seen == [60, 1, 2, 3, 4, 5, 6]
    assert _read(etc, user).settings().refresh_s == 3
    assert _read(etc, user).settings("another.example.org").refresh_s == 3


def test_origins_name_file_and_line(etc: Path) -> None:
    (etc / "config.toml").write_text("# first\nrefresh_s = 1\n[variables]\nca = 'x'\n")
    configuration = _read(etc, environment={"CVFS_CACHE": "/c"}, uid="7")
    origins = {name: origin.describe(name) for name, (_, origin) in configuration.effective().items()}
    assert origins == {
        "refresh_s": f"{etc}/config.toml:2",
        "variables": f"{etc}/config.toml:3",
        "cache": "environment CVFS_CACHE",
        "uid": "option --uid",
    }


def test_what_one_layer_says_of_trust_replaces_what_is_below(etc: Path) -> None:
    (etc / "repositories.d" / f"{NAME}.toml").write_text("root_sha256 = 'aa'\n")
    over = _read(etc, environment={"CVFS_ROOT": "/r"}).settings(NAME)
    assert (over.root, over.root_sha256) == (Path("/r"), None)
    option = _read(etc, environment={"CVFS_ROOT": "/r"}, trust_on_first_use=True).settings(NAME)
    assert (option.root, option.root_sha256, option.trust_on_first_use) == (None, None, True)
    assert _read(etc, trust_on_first_use=False).settings(NAME).root_sha256 == "aa"


def test_variables_of_all_layers_are_joined(etc: Path) -> None:
    (etc / "config.toml").write_text("variables = {A = '1', B = '2'}\n")
    settings = _read(etc, environment={"CVFS_VARIABLES": "B=3 C=4"}, variables=("C=5", "D=x y=z")).settings()
    assert settings.variables == {"A": "1", "B": "3", "C": "5", "D": "x y=z"}


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("refresh_s = 2.5", 2.5),
        ("refresh_s = '2 min'", 120),
        ("refresh_s = '1h'", 3600),
        ("cache_limit = 1000", 1000),
        ("cache_limit = '20 GB'", 20 * 10**9),
        ("cache_limit = '1.5 GiB'", 3 * 2**29),
        ("cache_limit = '64K'", 65536),
        ("cache_limit = '80 %'", 0.8),
        ("strict_freshness = 'yes'", True),
        ("own = false", False),
        ("uid = 'root'", 0),
        ("gid = 5", 5),
        ("uid_map = {1000 = 0, '*' = 65534}", {1000: 0, OTHERS: 65534}),
        ("proxies = [['http://a:1', 'http://b:2'], ['DIRECT']]", (("http://a:1", "http://b:2"), ("DIRECT",))),
        ("proxies = ['http://a:1|http://b:2', 'DIRECT']", (("http://a:1", "http://b:2"), ("DIRECT",))),
        ("proxies = 'http://a:1|http://b:2;DIRECT'", (("http://a:1", "http://b:2"), ("DIRECT",))),
        ("log_format = 'json'", "json"),
    ],
)
def test_values_are_written_as_people_do(etc: Path, line: str, wanted: Any) -> None:
    assert getattr(_of(line, etc), line.split(maxsplit=1)[0]) == wanted


def test_paths_count_from_the_directory_of_their_file(etc: Path) -> None:
    settings = _of("ca = '../certificates/ca.pem'\nroots = ['keys', '/k']\n", etc)
    assert settings.ca == etc.parent / "certificates/ca.pem"
    assert settings.roots == (etc / "keys", Path("/k"))
    assert _read(ca="ca.pem").settings().ca == Path.cwd() / "ca.pem"
    assert _read(roots="/a:b").settings().roots == (Path("/a"), Path.cwd() / "b")


def test_map_of_ids_from_a_file(etc: Path) -> None:
    (etc / "ids").write_text("# from to\n1000 0\n\n* 65534  # all others\n")
    assert _of("uid_map = 'ids'", etc).uid_map == {1000: 0, OTHERS: 65534}
    (etc / "ids").write_text("1000 0\n1000\n")
    with pytest.raises(ConfigError, match=r"config\.toml:1: uid_map: wanted .*ids:2 is not two ids"):
        _of("uid_map = 'ids'", etc)


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("\nrefresh_s = 'soon'\n", 2, "refresh_s: wanted seconds, at least 0.1 (or a text like '5 min'), not 'soon'"),
        ("refresh_s = 0\n", 1, "not 0"),
        ("refresh_s = nan\n", 1, "not nan"),
        ("refresh_s = true\n", 1, "not True"),
        ("cache_limit = -1\n", 1, "not -1"),
        ("cache_limit = '120 %'\n", 1, "not '120 %'"),
        ("cache = ''\n", 1, "cache: wanted a path"),
        ("ca = '\\u0000'\n".replace("'", '"'), 1, "ca: wanted a path"),
        ("cache = '~nobody-of-this-name/x'\n", 1, "cache: wanted a path"),
        ("uid = 'nobody-of-this-name'\n", 1, "there is no user 'nobody-of-this-name'"),
        ("proxies = ['file:///x']\n", 1, "proxies: wanted groups"),
        ("variables = {'a b' = 'x'}\n", 1, "variables: wanted a table"),
        ("log_format = 'xml'\n", 1, "wanted one of text, json"),
        ("cahce = '/c'\n", 1, "unknown setting 'cahce'; did you mean 'cache'?"),
        ("url = 'http://x'\n", 1, "'url' belongs into repositories.d/NAME.toml"),
        ("own = true\nnonsense\n", 2, "Expected '=' after a key"),
        ("ca = '''\nrefresh_s = 1\n'''\n[variables]\nrefresh_s = '2'\n[refresh_s]\n", 6, "refresh_s: wanted"),
    ],
)
def test_mistakes_are_told_with_file_and_line(etc: Path, text: str, line: int, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _of(text, etc)
    assert str(caught.value).startswith(f"{etc}/config.toml:{line}: ")
    assert why in str(caught.value)


def test_mistakes_in_environment_and_options_say_so() -> None:
    with pytest.raises(ConfigError, match=r"^environment CVFS_UID: uid: wanted "):
        _read(environment={"CVFS_UID": "-1"})
    with pytest.raises(ConfigError, match=r"^option --deadline: deadline_s: wanted "):
        _read(deadline_s="x")


def test_id_that_is_mapped_twice_is_a_mistake(etc: Path) -> None:
    for text, where in (("1000 0\n01000 1\n", ":2: 01000 is there twice"), ("* 0\n\n* 1", r":3: \* is there twice")):
        (etc / "ids").write_text(text)
        with pytest.raises(ConfigError, match=f"config.toml:1: gid_map: wanted .*{etc}/ids{where}"):
            _of("gid_map = 'ids'", etc)
    with pytest.raises(ConfigError, match=r"config.toml:1: uid_map: wanted .*01000 is there twice"):
        _of("uid_map = {1000 = 0, 01000 = 1}", etc)


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        (
            "proxies",
            "127.0.0.1:3128",
            "groups of proxies like http://a:3128|http://b:3128;DIRECT, not '127.0.0.1:3128'",
        ),
        ("mirrors", "server", "an address like http://server/path, not 'server'"),
        ("uid_map", "/none", "the name of a file with two ids a line, like 1000 0, not '/none' (cannot read /none:"),
        ("domains", "example.org", "a domain and an address, like example.org=http://server/{name}, not 'example.org'"),
        ("variables", "COMPILER", "a name and a text, like COMPILER=gcc, not 'COMPILER'"),
    ],
)
def test_what_is_wanted_is_said_as_options_and_variables_are_written(name: str, text: str, wanted: str) -> None:
    """Not as a file has it: there the same would be refused."""
    for said in ({"environment": {f"CVFS_{name.upper()}": text}}, {name: (text,) if TABLE[name].is_list else text}):
        with pytest.raises(ConfigError) as caught:
            _read(**said)
        assert f"{name}: wanted {wanted}" in str(caught.value)


def test_mistake_in_one_repository_costs_no_other(etc: Path) -> None:
    (etc / "repositories.d" / f"{NAME}.toml").write_text("url = 7\n")
    (etc / "repositories.d" / "b.example.org.toml").write_text("url = 'http://b'\ncache = '/c'\n")
    (etc / "repositories.d" / "c.example.org.toml").write_text("url = 'http://c'\n")
    configuration = _read(etc)
    assert configuration.names() == ["b.example.org", "c.example.org", NAME]
    with pytest.raises(ConfigError, match=r"org\.toml:1: url: wanted an address"):
        configuration.settings(NAME)
    with pytest.raises(ConfigError, match=r"org\.toml:2: 'cache' belongs into config\.toml"):
        configuration.settings("b.example.org")
    assert configuration.locate("c.example.org")[0] == "http://c"


def test_repository_is_found_by_name_address_or_directory(etc: Path, tmp_path: Path) -> None:
    (etc / "repositories.d" / f"{NAME}.toml").write_text("url = 'http://server/x'\nrefresh_s = 7\n")
    (etc / "repositories.d" / "no.example.org.toml").write_text("refresh_s = 7\n")
    configuration = _read(etc)
    url, settings = configuration.locate(NAME)
    assert (url, settings.refresh_s, settings.name) == ("http://server/x", 7, NAME)
    assert configuration.locate("http://server/x")[1].refresh_s == 60
    assert configuration.locate(str(tmp_path))[0] == tmp_path.as_uri()
    with pytest.raises(ConfigError, match=r"no\.example\.org\.toml: 'url' is missing"):
        configuration.locate("no.example.org")
    with pytest.raises(ConfigError, match=r"configured: no\.example\.org, software\.example\.org"):
        configuration.locate("../etc/config")


def test_only_names_of_repositories_are_files_of_them(etc: Path) -> None:
    for name in (".x.toml", "a.toml~", "A.toml", "ok.toml"):
        (etc / "repositories.d" / name).write_text("")
    assert _read(etc).names() == ["ok"]
    assert not _read(etc).has("../config")


def test_directories_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CVFS_CONFIG", "/a:/b")
    assert config_directories() == [Path("/a"), Path("/b")]
    monkeypatch.delenv("CVFS_CONFIG")
    monkeypatch.setenv("XDG_CONFIG_HOME", "/x")
    assert config_directories() == [Path("/etc/cvfs"), Path("/x/cvfs")]
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert config_directories()[1] == Path.home() / ".config/cvfs"


def test_directory_that_is_named_has_to_be_there(monkeypatch: pytest.MonkeyPatch, etc: Path) -> None:
    """Else what is configured would be missing, and nobody would know why. Where none is named there need be none."""
    monkeypatch.setenv("CVFS_CONFIG", f"{etc}:{etc}/none")
    with pytest.raises(ConfigError, match=f"no directory {etc}/none, which CVFS_CONFIG names"):
        read_configuration()
    read_configuration(to_write=True)
    monkeypatch.setenv("CVFS_CONFIG", f"{etc}:")
    read_configuration()
    monkeypatch.delenv("CVFS_CONFIG")
    monkeypatch.setenv("XDG_CONFIG_HOME", f"{etc}/none")
    read_configuration()


def test_one_setting_is_found_among_what_cannot_be_used(monkeypatch: pytest.MonkeyPatch, etc: Path) -> None:
    monkeypatch.delenv("CVFS_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("CVFS_CONFIG", f"{etc}:{etc}/none")
    assert find_alone("runtime") == default_runtime()
    (etc / "config.toml").write_text("cash = 1\nruntime = 'here'\n")
    assert find_alone("runtime") == etc / "here"
    (etc / "none").mkdir()
    for text in ("runtime = 7\n", "runtime = = 7\n"):
        (etc / "none" / "config.toml").write_text(text)
        assert find_alone("runtime") == etc / "here"
    monkeypatch.setenv("CVFS_RUNTIME_DIR", "/said")
    assert find_alone("runtime") == Path("/said")


def test_repositories_of_a_domain_need_no_file(etc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (etc / "config.toml").write_text(
        "domains = {'example.org' = 'http://s/{name}', 'b.example.org' = 'http://b/{name}'}"
    )
    (etc / "repositories.d" / f"{NAME}.toml").write_text("url = 'http://own'\n")
    monkeypatch.setenv("CVFS_CONFIG", str(etc))
    sites = ConfiguredSites()
    assert sites.names().listed == (NAME,)
    names = (NAME, "x.example.org", "x.b.example.org")
    assert [sites.site(name).url for name in names] == [
        "http://own",
        "http://s/x.example.org",
        "http://b/x.b.example.org",
    ]
    assert sites.names().allows("x.b.example.org")
    for name in ("x.other.org", "example.org", "xexample.org", "../x.example.org", "X.example.org"):
        assert not sites.names().allows(name)
    for wrong in (
        "{'example.org' = 'http://s/'}",
        "{'../x' = 'http://s/{name}'}",
        "{'example.org' = 'ftp://s/{name}'}",
    ):
        with pytest.raises(ConfigError, match=r"config\.toml:1: domains: wanted a table of addresses"):
            _of(f"domains = {wrong}\n", etc)


def test_defaults_are_values_that_could_be_written(etc: Path) -> None:
    defaults = msgspec.structs.asdict(Settings())
    assert list(TABLE) == list(defaults)
    lines = [write_line(name, value) for name, value in defaults.items() if value is not None]
    for_all = [line for line in lines if TABLE[line.split()[0]].scope != "repository"]
    assert _of("\n".join(for_all), etc) == Settings()


@given(st.dictionaries(st.from_regex(r"[A-Z_a-z]\w{0,8}", fullmatch=True).filter(str.isascii), st.text(max_size=9)))
def test_texts_come_back_from_toml(texts: dict[str, str]) -> None:
    try:
        written = toml_of(texts)
    except ConfigError:
        assert any("\ud800" <= character <= "\udfff" for text in texts.values() for character in text)
        return
    assert tomllib.loads(f"x = {written}") == {"x": texts}


def test_file_is_written_as_a_whole(etc: Path) -> None:
    path = etc / "repositories.d/new.toml"
    write_file(path, {"url": "http://x", "mirrors": ["http://y"], "variables": {"A": 'q"\x7f'}, "own": True})
    assert path.stat().st_mode & 0o777 == 0o644
    assert tomllib.loads(path.read_text())["variables"] == {"A": 'q"\x7f'}
    with pytest.raises(ConfigError, match="not UTF-8"):
        write_file(path, {"url": "\udcff"})
    (etc / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write .*: (Not a directory|File exists)"):
        write_file(etc / "file" / "x.toml", {})
    (etc / "repositories.d/taken.toml").mkdir()
    with pytest.raises(ConfigError, match="Is a directory"):
        write_file(etc / "repositories.d/taken.toml", {})
    assert sorted(os.listdir(path.parent)) == ["new.toml", "taken.toml"]


def test_line_of_a_key_that_is_gone(etc: Path) -> None:
    assert line_of(etc / "config.toml", "x") is None


def test_options_of_mount_are_settings_too(tmp_path: Path) -> None:
    words = [
        "ro,uid=5,strict-freshness,suid,nodev,nosuid,noatime",
        "mirrors=http://a,mirrors=http://b,_netdev,x-systemd.automount",
    ]
    options, switches = settings_among(words), {"suid": "false", "dev": "false"}
    assert options == {**switches, "uid": "5", "strict_freshness": "true", "mirrors": ["http://a", "http://b"]}
    settings = _read(**options).settings()
    assert (settings.uid, settings.strict_freshness, settings.mirrors) == (5, True, ("http://a", "http://b"))
    request = MountRequest("http://x", tmp_path, settings)
    assert apply_options(request, words) == request
    with pytest.raises(ConfigError, match="unknown mount option 'sync=1'"):
        apply_options(request, ["sync=1"])


def test_settings_reach_other_processes_whole(tmp_path: Path) -> None:
    configuration = _read(
        uid="1", uid_map={"1": 2, "*": 3}, proxies="http://a:1;DIRECT", variables=("A=b",), keep_free=10**9, ca="/ca"
    )
    request = MountRequest("http://x", tmp_path, configuration.settings())
    assert decode_request(encode_request(request)) == request
    assert msgspec.json.decode(encode_request(request))["settings"]["keep_free"] == 10**9
