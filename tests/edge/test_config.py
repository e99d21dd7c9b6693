"""The configuration: typed, complete, and nothing in it is ignored."""

import contextlib
import os
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from edgetag import config
from edgetag.config import (
    LIVE,
    RuntimeSettings,
    Settings,
    TagSettings,
    changes,
    json_schema,
    mqtt_key_file,
    mqtt_password,
    read,
    read_settings,
    value_of,
)
from edgetag.config_cli import as_yaml
from edgetag.contract.errors import InputError
from edgetag.contract.strict_yaml import dump_yaml, load_yaml
from edgetag.secret import Secret

DEPLOYED = Path(__file__).parents[2] / "deploy" / "edgetag.yaml"
DEFAULTS = msgspec.to_builtins(Settings())
KEYS = sorted({*DEFAULTS, *(key for keys in DEFAULTS.values() for key in keys), "on", "off", "5", "5-1"})

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=150)
NAME = st.text(st.characters(codec="utf-8", categories=["L", "N", "Zs"]), min_size=1, max_size=60).filter(
    str.isprintable
)
PROBABILITY = st.floats(min_value=1e-9, max_value=1.0)
TAG = st.fixed_dictionaries(
    {}, optional={"on": st.floats(0.5, 1.0), "off": st.floats(1e-9, 0.5), "min_duration_s": st.floats(0, 60)}
)
VALID = {
    "sensor": {"id": st.none() | NAME},
    "audio": {
        "device": st.none() | TEXT,
        "channel": st.just("mix") | st.integers(1, 64),
        "rate_hz": st.none() | st.integers(4_000, 384_000),
    },
    "window": {"hop_s": st.none() | st.floats(0.1, 3_600)},
    "bundle": {"path": st.none() | TEXT, "public_key": st.none() | TEXT},
    "runtime": {"variant": st.sampled_from(["auto", "fp32", "int8"]), "threads": st.integers(1, 64)},
    "gate": {"min_laeq_db": st.none() | st.floats(-300, 300) | st.integers(-300, 300)},
    "level": {"calibration_db": st.none() | st.floats(-300, 300)},
    "events": {
        "off_ratio": PROBABILITY,
        "min_duration_s": st.floats(0, 86_400),
        "tags": st.dictionaries(st.from_regex(r"[1-9]{1,2}(-([1-9]|X))?", fullmatch=True), TAG, max_size=3),
    },
    "mqtt": {
        "url": st.none() | st.just("mqtt://broker.example:1884"),
        "user": NAME,
        "password_file": st.none() | TEXT,
        "prefix": st.sampled_from(["a", "a/b", "straße"]),
        "version": st.sampled_from(["auto", 5, "3.1.1"]),
        "keepalive_s": st.integers(5, 0xFFFF),
        "will_delay_s": st.integers(0, 300),
        "message_expiry_s": st.none() | st.integers(1, 2**32 - 2),
    },
    "outbox": {
        "durability": st.sampled_from(["power_loss", "process_crash", "memory"]),
        "max_bytes": st.integers(100_000, 10**12),
    },
    "home_assistant": {"discovery": st.booleans(), "prefix": st.sampled_from(["homeassistant", "ha/x"])},
    "log": {
        "level": st.sampled_from(["debug", "info", "warning", "error"]),
        "format": st.sampled_from(["console", "json"]),
    },
}
CONTENT = st.fixed_dictionaries(
    {}, optional={section: st.fixed_dictionaries({}, optional=keys) for section, keys in VALID.items()}
).filter(lambda content: "user" in content.get("mqtt", {"user": ""}))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "edgetag.yaml"


def written(file: Path, text: str) -> Path:
    file.write_text(text)
    return file


def sentence(file: Path | None, **environment: str) -> str:
    """What is said of it, without the path of the test's folder."""
    with pytest.raises(InputError) as refusal:
        read_settings(file, environment)
    assert "\n" not in str(refusal.value)
    return str(refusal.value).replace(f"{file and file.parent}/", "")


@pytest.mark.parametrize(
    "text", ["", "# nothing yet\n", "{}", "bundle: {}\nruntime: {}", "audio:\nevents: {tags: }"]
)
def test_an_empty_file_is_all_defaults(file: Path, text: str) -> None:
    """Nothing has to be written down; a section may have all its lines commented out."""
    assert read_settings(written(file, text), {}) == Settings() == read_settings(None, {})


def test_the_commented_file_is_complete_and_all_defaults() -> None:
    """`deploy/edgetag.yaml` names every setting, with the value it has anyway, and a word on each."""
    assert read_settings(DEPLOYED, {}) == Settings()
    assert load_yaml(DEPLOYED.read_bytes()) == DEFAULTS
    lines = DEPLOYED.read_text().splitlines()
    for before, line in pairwise(lines):
        assert not re.match("  [a-z]", line) or before.startswith("  #"), line


def test_what_is_written_is_read(file: Path) -> None:
    """Some settings given, the others default."""
    settings = read_settings(
        written(file, "runtime: {variant: fp32}\nbundle: {public_key: /etc/x.pub}\n"), {}
    )
    assert settings.runtime == RuntimeSettings("fp32", 1)
    assert (settings.bundle.path, settings.bundle.public_key) == (None, "/etc/x.pub")


def test_a_tags_rules_are_written_as_one_would(file: Path) -> None:
    """To YAML an id without quotes is a number, and `on` and `off` are booleans."""
    rules = read_settings(
        written(file, "events: {tags: {5: {on: 0.6, off: 0.4}, 5-1: , 7-X: {'on': 1}}}"), {}
    )
    assert rules.events.tags == {"5": TagSettings(0.6, 0.4), "5-1": TagSettings(), "7-X": TagSettings(1.0)}


def test_a_city_may_have_ids_of_its_own(file: Path) -> None:
    """Letters and digits, with a leading zero as well: whether the bundle has such a tag shows when it is
    loaded."""
    rules = read_settings(written(file, "events: {tags: {ship-horn: {on: 0.6}, 05: , 'no-X': }}"), {})
    assert rules.events.tags == {"ship-horn": TagSettings(0.6), "05": TagSettings(), "no-X": TagSettings()}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("audio: {devise: x}", "audio.devise is unknown; did you mean audio.device?"),
        ("audio: {threads: 2}", "audio.threads is unknown; did you mean runtime.threads?"),
        ("audio: {x: 2}", "audio.x is unknown; there are audio.device, audio.channel, audio.rate_hz"),
        ("runtimes: {threads: 1}", "runtimes is unknown; did you mean runtime?"),
        ("lvl: {calibration_db: 1}", "lvl is unknown; did you mean level?"),
        ("device: x", "device is unknown; did you mean audio.device?"),
        ("audio.device: x", '"audio.device" is unknown'),
        ('{"a\\nb": 1}', '"a\\nb" is unknown; there are sensor, audio, '),
        ("audio: {5: x}", "audio.5 is unknown; there are audio.device"),
        ("events: {tags: {5: {onn: 1}}}", "events.tags.5.onn is unknown; did you mean events.tags.5.on?"),
        ("events: {tags: {'5': {}, 5: {}}}", "events.tags.5 is there twice"),
        ("events: {tags: {5: {on: 1, 'on': 1}}}", "events.tags.5.on is there twice"),
        ("events: {tags: {5-1-1: {}}}", 'events.tags: a key is 5-1-1; expected a tag\'s id like "5" or'),
        ("events: {tags: {5_1: {}}}", 'events.tags: a key is 5_1; expected a tag\'s id like "5" or "5-1"'),
        ("events: {tags: {true: {}}}", "events.tags: a key is true; expected a tag's id"),
        ('events: {tags: {"5\\n": {}}}', 'events.tags: a key is "5\\n"; expected a tag\'s id'),
        ("events: {tags: [5]}", "events.tags is [5]; expected rules by tag"),
        ("events: {tags: {5: 0.5}}", "events.tags.5 is 0.5; expected on, off and min_duration_s"),
        ("events: {tags: {5: {on: 0}}}", "tags.5.on is 0; expected null or a number, above 0, at most 1"),
        ("events: {tags: {5: {on: 0.4, off: 0.6}}}", "tags.5.off is 0.6; expected at most what on is, 0.4"),
        ("events: {off_ratio: 1.5}", "events.off_ratio is 1.5; expected a number, above 0, at most 1"),
        ("runtime: {variant: int4}", 'runtime.variant is "int4"; expected auto, fp32 or int8'),
        ("runtime: {threads: 0}", "runtime.threads is 0; expected a whole number from 1 to 64"),
        ("runtime: {threads: true}", "runtime.threads is true; expected a whole number"),
        ("runtime: 4", "runtime is a number; expected settings, indented below it"),
        ("audio: {rate_hz: 44.1}", "rate_hz is 44.1; expected null or a whole number from 4000 to 384000"),
        ("audio: {channel: left}", 'audio.channel is "left"; expected mix or a whole number, at least 1'),
        ("audio: {channel: 0}", "audio.channel is 0; expected mix or a whole number, at least 1"),
        ("audio: {channel: null}", "audio.channel is null; expected mix"),
        ("audio: {device: ''}", 'audio.device is ""; expected null or text'),
        ("window: {hop_s: .nan}", "window.hop_s is NaN; expected null or a number from 0.1 to 3600"),
        ("level: {calibration_db: .inf}", "calibration_db is Infinity; expected null or a number from -300"),
        ("sensor: {id: 12}", "sensor.id is 12; expected null or text without control characters, in quotes"),
        ("sensor: {id: a/b}", "sensor.id: the sensor id 'a/b' holds one of + # /"),
        (f"sensor: {{id: {'a' * 65}}}", "sensor.id: the sensor id has 65 characters, expected 1 to 64"),
        ("mqtt: {prefix: a/}", "mqtt.prefix: the topic prefix 'a/' must not begin or end with a slash"),
        ("mqtt: {url: broker}", "mqtt.url: a broker's URL reads mqtt://"),
        ("mqtt: {user: a, password_file: b, password_credential: c}", "mqtt.password_file: one of them is"),
        ("mqtt: {password_file: b}", "mqtt.password_file needs mqtt.user, whose password it is"),
        ("mqtt: {user: a, password_credential: ../x}", "credential is text; expected null or the name of a"),
        ("mqtt: {user: a, password_credential: ..}", "credential is text; expected null or the name of a"),
        ("mqtt: {url: mqtt://a, ca_file: b}", "mqtt.ca_file needs TLS: a mqtt.url that begins with mqtts://"),
        ("mqtt: {alpn: mqtt}", "mqtt.alpn needs TLS"),
        ("mqtt: {url: wss://a, key_file: b}", "mqtt.key_file needs mqtt.cert_file, whose key it is"),
        ("mqtt: {url: wss://a, key_credential: b}", "mqtt.key_credential needs mqtt.cert_file, whose key it"),
        ("mqtt: {url: mqtt://a, cert_file: b, key_credential: c}", "mqtt.cert_file needs TLS"),
        ("mqtt: {key_credential: c}", "mqtt.key_credential needs TLS"),
        (
            "mqtt: {url: wss://a, cert_file: b, key_file: c, key_credential: d}",
            "mqtt.key_credential and mqtt.key_file: one of them is enough",
        ),
        ("mqtt: {url: wss://a, cert_file: b, key_credential: /c}", "expected null or the name of a systemd"),
        ("mqtt: {version: 3}", "mqtt.version is a number; expected 5, 3.1.1 or auto"),
        ("outbox: {max_bytes: 9}", "outbox.max_bytes is 9; expected a whole number from 100000 to"),
        ("home_assistant: {prefix: a/}", "home_assistant.prefix: the topic prefix 'a/' must not"),
        ("log: {level: loud}", 'log.level is "loud"; expected debug, error, info or warning'),
        ("bundle: {path: 7}", "bundle.path is 7; expected null or a path"),
        ('bundle: {path: "a\\0b"}', 'bundle.path is "a\\u0000b"'),
        ('bundle: {public_key: ""}', "bundle.public_key"),
        (f"bundle: {{path: [{'a' * 90}]}}", f'bundle.path is ["{"a" * 58} …; expected'),
        ("- 1", "edgetag.yaml is a list; expected sections: sensor, audio"),
        ("#" * 2**16 + "\n", "longer than"),
        ("bundle: {path: a, path: b}", "line 1, column 9: a key is there twice"),
        ("a: &a [1]\nb: *a", "aliases"),
        ("{", "line 1"),
        ("\0", "unacceptable character"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_with_one_sentence(file: Path, text: str, said: str) -> None:
    """Where it is, what is there, what is expected: a setting with a typing error is no setting left out."""
    refusal = sentence(written(file, text))
    assert refusal.startswith("edgetag.yaml")
    assert said in refusal


@pytest.mark.parametrize(
    "text",
    [
        "mqtt: {url: 'mqtt://u:hunter2@broker'}",
        "mqtt: {url: 'mqtt://:hunter2@broker'}",
        "mqtt: {url: 'mqtt://broker', user: u:hunter2, password: hunter2}",
        "mqtt: mqtt://u:hunter2@broker",
        "mqtt: {url mqtt://u:hunter2@broker}",
        "mqtt: {url: mqtt://hunter2:x}",
        "mqtt: {password_file: [hunter2]}",
        "mqtt:\n  url: mqtt://u:hunter2@broker: 1",
        "mqtt:\n  password: 'hunter2",
        "mqtt://u:hunter2@broker",
    ],
)
def test_a_password_in_the_file_is_refused_and_not_repeated(file: Path, text: str) -> None:
    """Wherever a slip of the pen puts it, even where the YAML breaks off: the sentence goes to a log."""
    assert "hunter2" not in sentence(written(file, text))


def test_a_password_in_the_url_gets_a_remedy(file: Path) -> None:
    """The same from the environment."""
    assert "mqtt.url: a user and a password do not belong here; write mqtt.user, and mqtt.password_file" in (
        sentence(written(file, "mqtt: {url: 'mqtt://u:hunter2@broker'}"))
    )
    refusal = sentence(None, EDGETAG_MQTT_URL="mqtt://u:hunter2@broker")
    assert refusal.startswith("EDGETAG_MQTT_URL: a user and a password do not belong here")
    assert "hunter2" not in refusal


def test_every_fault_is_found(file: Path) -> None:
    """One sentence a setting; the file's first, in its order."""
    reading = read(written(file, "log: {level: loud}\naudio: {devise: 1}"), {"EDGETAG_RUNTIME_THREADS": "0"})
    assert reading.settings is None
    assert [fault.partition(" is ")[0] for fault in reading.faults] == [
        f"{file}: log.level",
        f"{file}: audio.devise",
        "EDGETAG_RUNTIME_THREADS",
    ]


def test_the_environment_goes_over_the_file(file: Path) -> None:
    """Setting by setting; and each says where it comes from."""
    written(file, "runtime: {variant: fp32, threads: 2}\nlevel: {calibration_db: 1}")
    environment = {
        "EDGETAG_RUNTIME_THREADS": "3",
        "EDGETAG_LEVEL_CALIBRATION_DB": "",
        "EDGETAG_AUDIO_CHANNEL": "2",
        "EDGETAG_EVENTS_TAGS": "{5: {on: 0.6}}",
    }
    reading = read(file, environment)
    settings = reading.accepted()
    assert settings.runtime == RuntimeSettings("fp32", 3)
    assert (settings.level.calibration_db, settings.audio.channel) == (None, 2)
    assert settings.events.tags == {"5": TagSettings(0.6)}
    assert reading.origins["runtime.variant"] == str(file)
    assert reading.origins["runtime.threads"] == "EDGETAG_RUNTIME_THREADS"


@pytest.mark.parametrize("text", ["Mic #2: left", "*", "{", "123", "'a'", "true", "a: b: c", "@x", "007"])
def test_text_in_a_variable_is_taken_as_it_is(text: str) -> None:
    """The name of a sound card is not YAML."""
    settings = read_settings(None, {"EDGETAG_AUDIO_DEVICE": text, "EDGETAG_BUNDLE_PATH": text})
    assert (settings.audio.device, settings.bundle.path) == (text, text)


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("EDGETAG_AUDIO_DEVISE", "x", "EDGETAG_AUDIO_DEVISE is unknown; did you mean EDGETAG_AUDIO_DEVICE?"),
        ("EDGETAG_MQTT_PASSWORD", "hunter2", "is unknown; did you mean EDGETAG_MQTT_PASSWORD_FILE?"),
        ("EDGETAG_LOG_X", "x", "EDGETAG_LOG_X is unknown; did you mean EDGETAG_LOG_"),
        ("EDGETAG_LEVEL_CALIBRATION_DB", "94,2", 'LEVEL_CALIBRATION_DB is "94,2"; expected null or a num'),
        ("EDGETAG_LEVEL_CALIBRATION_DB", "{", 'EDGETAG_LEVEL_CALIBRATION_DB is "{"; expected null or a num'),
        ("EDGETAG_LOG_LEVEL", "", "EDGETAG_LOG_LEVEL is null; expected debug"),
        ("EDGETAG_EVENTS_TAGS", "{5: {off: 2}}", "EDGETAG_EVENTS_TAGS.5.off is 2; expected null or a number"),
        ("EDGETAG_SENSOR_ID", "a/b", "EDGETAG_SENSOR_ID: the sensor id 'a/b'"),
        ("EDGETAG_MQTT_PASSWORD_FILE", "x", "EDGETAG_MQTT_PASSWORD_FILE: mqtt.password_file needs"),
        ("EDGETAG_BUNDLE_PATH", "\udcff", "EDGETAG_BUNDLE_PATH is not UTF-8"),
        ("EDGETAG_RUNTIME_VARIANT", "\udcff", "EDGETAG_RUNTIME_VARIANT"),
    ],
)  # fmt: skip
def test_a_variable_that_is_not_understood_is_named(variable: str, value: str, said: str) -> None:
    """A section in its name makes it one of ours."""
    refusal = sentence(None, **{variable: value})
    assert said in refusal
    assert "hunter2" not in refusal


def test_other_variables_are_nobodys_settings() -> None:
    """Those of the tests and the key's passphrase, for example."""
    others = dict.fromkeys(("EDGETAG_SHARED", "EDGETAG_KEY_PASSPHRASE", "EDGETAG_LOG", "AUDIO_DEVICE"), "x")
    assert read_settings(None, others) == Settings()


def test_no_variable_could_be_two_settings() -> None:
    """`EDGETAG_A_B_C` is `a.b_c` or `a_b.c`, never both."""
    variables = [f"{section}_{key}" for section, keys in DEFAULTS.items() for key in keys]
    assert len({*variables}) == len(variables)
    for variable in variables:
        assert sum(variable.startswith(f"{section}_") for section in DEFAULTS) == 1


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """The reason is in the sentence."""
    with pytest.raises(InputError, match=r"edgetag\.yaml cannot be read \(No such file"):
        read_settings(tmp_path / "edgetag.yaml")
    with pytest.raises(InputError, match="is a folder, not a configuration file"):
        read_settings(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is a pipe"):
        read_settings(tmp_path / "pipe")


@given(st.binary(max_size=200) | st.text(alphabet="{}[]:,-&*!|>'\"#?%@`~ \n\tabundle0123.eE+", max_size=80))
def test_no_file_ends_in_a_traceback(tmp_path_factory: pytest.TempPathFactory, text: bytes | str) -> None:
    """Settings, or a refusal."""
    file = tmp_path_factory.getbasetemp() / "edgetag.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with contextlib.suppress(InputError):
        assert isinstance(read_settings(file, {}), Settings)


SCALAR = st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats() | st.text(max_size=5)
ANYTHING = st.recursive(
    SCALAR | st.sampled_from(KEYS),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | SCALAR, inner, max_size=4)
    ),
    max_leaves=12,
)


@given(
    ANYTHING
    | st.dictionaries(
        st.sampled_from([*DEFAULTS]), st.dictionaries(st.sampled_from(KEYS), ANYTHING, max_size=3), max_size=4
    )
)
def test_any_value_in_any_place_is_a_setting_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: Any
) -> None:
    """And a setting that is taken is what the plain type takes, where nothing but text is a key."""
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_bytes(dump_yaml(content))
    try:
        settings = read_settings(file, {})
    except InputError:
        return
    with contextlib.suppress(msgspec.ValidationError):
        assert msgspec.convert(content or {}, Settings) == settings


@given(st.sampled_from([*config._KINDS]), st.text(max_size=20) | ANYTHING.map(str))
def test_any_text_in_any_variable_is_a_setting_or_refused(path: str, text: str) -> None:
    """The refusal begins with the variable."""
    variable = f"EDGETAG_{path.replace('.', '_').upper()}"
    try:
        assert isinstance(read_settings(None, {variable: text}), Settings)
    except InputError as error:
        assert str(error).startswith(variable)  # noqa: PT017


@given(CONTENT)
def test_what_is_shown_reads_as_the_same_settings(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any]
) -> None:
    """`edgetag config show` writes a configuration file; and the plain type agrees with what was read."""
    file = tmp_path_factory.getbasetemp() / "shown.yaml"
    file.write_bytes(dump_yaml(content))
    reading = read(file, {})
    assert reading.accepted() == msgspec.convert(content, Settings)
    file.write_text(as_yaml(reading))
    assert read_settings(file, {}) == reading.settings
    jsonschema.validate(content, json_schema())


def test_the_schema_knows_every_setting() -> None:
    """It takes the commented file, and refuses what the reader refuses for its type."""
    schema = json_schema()
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    assert validator.is_valid(load_yaml(DEPLOYED.read_bytes()))
    for refused in (
        {"audio": {"devise": None}},
        {"audio": {"rate_hz": 7}},
        {"events": {"tags": {"5_1": {}}}},
        {"events": {"tags": {"5": {"on": 2}}}},
        {"sensor": {"id": 7}},
        {"log": {"level": "loud"}},
        {"devices": {}},
    ):
        assert not validator.is_valid(refused), refused


def test_changes_are_the_paths_that_differ(file: Path) -> None:
    """In the file's order; none between the same."""
    old = read_settings(None, {})
    new = read_settings(
        written(file, "log: {level: info}\nevents: {tags: {5: {on: 0.6}}}\naudio: {device: x}"), {}
    )
    assert changes(old, old) == []
    assert changes(old, new) == changes(new, old) == ["audio.device", "events.tags", "log.level"]
    assert value_of(new, "audio.device") == "x"


def test_what_a_running_process_takes() -> None:
    """What opens a device or names the sensor waits for a restart."""
    assert {path.partition(".")[0] for path in LIVE} == {
        "bundle",
        "runtime",
        "gate",
        "level",
        "events",
        "log",
    }
    assert "events.tags" in LIVE
    assert "log.format" not in LIVE


def password_of(file: Path | str, **environment: str) -> Secret | None:
    variables = {"EDGETAG_MQTT_USER": "u", "EDGETAG_MQTT_PASSWORD_FILE": str(file)}
    return mqtt_password(read_settings(None, variables), environment)


def test_a_password_is_a_files_first_line(tmp_path: Path) -> None:
    """Without its end; a link to it will do, as containers make them. Without a file there is none."""
    (tmp_path / "data").write_text(" straße hunter2 \r\nsecond")
    (tmp_path / "password").symlink_to(tmp_path / "data")
    (tmp_path / "data").chmod(0o640)
    with structlog.testing.capture_logs() as logs:
        assert password_of(tmp_path / "password") == Secret(" straße hunter2 ")
        assert mqtt_password(Settings()) is None
    assert logs == []


def test_a_password_that_everybody_may_read_is_said_aloud(tmp_path: Path) -> None:
    """It is used all the same."""
    (tmp_path / "password").write_text("hunter2")
    (tmp_path / "password").chmod(0o644)
    with structlog.testing.capture_logs() as logs:
        assert password_of(tmp_path / "password") == Secret("hunter2")
    assert [log["event"] for log in logs] == ["secret.readable_by_others"]
    assert "hunter2" not in str(logs)


def test_a_password_may_be_a_systemd_credential(tmp_path: Path) -> None:
    """Of the unit that started us."""
    settings = read_settings(None, {"EDGETAG_MQTT_USER": "u", "EDGETAG_MQTT_PASSWORD_CREDENTIAL": "mqtt"})
    (tmp_path / "mqtt").write_text("hunter2\n")
    (tmp_path / "mqtt").chmod(0o400)
    assert mqtt_password(settings, {"CREDENTIALS_DIRECTORY": str(tmp_path)}) == Secret("hunter2")


def test_a_certificates_key_may_be_a_systemd_credential(tmp_path: Path) -> None:
    """Else it is the file that is named, if one is."""
    there = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    (tmp_path / "key").touch()
    tls = {"EDGETAG_MQTT_URL": "mqtts://a", "EDGETAG_MQTT_CERT_FILE": "sensor.crt"}
    for variable, file in (("CREDENTIAL", str(tmp_path / "key")), ("FILE", "key")):
        settings = read_settings(None, {**tls, f"EDGETAG_MQTT_KEY_{variable}": "key"})
        assert mqtt_key_file(settings, there) == file
    assert mqtt_key_file(read_settings(None, tls), there) is None


@pytest.mark.parametrize("key", ["password_credential", "key_credential"])
def test_a_credential_that_systemd_did_not_hand_over_is_missed_with_one_sentence(
    key: str, tmp_path: Path
) -> None:
    """Which does not quote its name, in the place of which somebody may have written the secret itself."""
    stated = {"URL": "mqtts://a", "USER": "u", "CERT_FILE": "b", key.upper(): "hunter2"}
    settings = read_settings(None, {f"EDGETAG_MQTT_{name}": value for name, value in stated.items()})
    wanted = {"password_credential": mqtt_password, "key_credential": mqtt_key_file}[key]
    for environment, said in (
        ({}, "needs systemd's LoadCredential=; $CREDENTIALS_DIRECTORY is not set"),
        ({"CREDENTIALS_DIRECTORY": str(tmp_path)}, "names none of the credentials that systemd handed over"),
        ({"CREDENTIALS_DIRECTORY": "/x" * 4000}, "names none of the credentials that systemd handed over"),
    ):
        with pytest.raises(InputError) as refusal:
            wanted(settings, environment)
        assert str(refusal.value) == f"mqtt.{key} {said}"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the first line of mqtt.password_file's file is empty"),
        (b"\nhunter2\n", "is empty"),
        (b"\xff", "is not UTF-8"),
        (b"x" * 70_000, "is longer than 65535 bytes"),
        (None, r"mqtt.password_file's file cannot be read \(No such file or directory\)"),
    ],
)
def test_a_password_that_is_none_gets_one_sentence(tmp_path: Path, content: bytes | None, said: str) -> None:
    """Which does not quote the path: somebody may have written the password itself there."""
    file = tmp_path / "hunter2"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=said) as refusal:
        password_of(file)
    assert "hunter2" not in str(refusal.value)
    with pytest.raises(InputError, match="names a folder, not a file with a secret"):
        password_of(tmp_path)


def test_a_secret_prints_as_stars() -> None:
    """However it is printed; only `reveal` tells."""
    secret = Secret("hunter2")
    shown = f"{secret} {secret!r} {secret!s} {[secret]} {'%s' % secret} {secret:}"  # noqa: UP031
    assert "hunter2" not in shown
    assert secret.reveal() == "hunter2"
    assert {secret, Secret("hunter2")} == {secret}
    assert secret != "hunter2"
    with pytest.raises(TypeError):
        msgspec.json.encode({"password": secret})
