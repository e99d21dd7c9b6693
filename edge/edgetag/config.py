"""The configuration: one YAML file, environment variables over it, every setting typed, no key ignored.

`deploy/edgetag.yaml` has every setting with its default and says what it does. `EDGETAG_<SECTION>_<KEY>` goes
over it: `EDGETAG_LEVEL_CALIBRATION_DB=126.1`. Text is taken as it is there, everything else is read as YAML;
`null` and nothing at all are null.

Settings hold no secrets, only where they are.
"""

import difflib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from inspect import cleandoc
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

import msgspec
import yaml
from msgspec import inspect

from edgetag.contract.errors import InputError, own_user
from edgetag.contract.event import DEFAULT_PREFIX
from edgetag.contract.strict_yaml import load_yaml
from edgetag.delivery.address import check_prefix, check_sensor, parse_url
from edgetag.secret import Secret, read_secret
from edgetag.tagging.container import NotPlainError, read_plain_file

MAX_BYTES = 2**16
MAX_SHOWN_CHARACTERS = 60

# What a setting may be. A description is what its value is said to be expected to be.
FilePath = Annotated[str, msgspec.Meta(pattern=r"^[^\x00]+$", description="a path")]
Text = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[^\x00-\x1f\x7f]+(?!\n)$",
        description="text without control characters, in quotes where it looks like a number",
    ),
]
CredentialName = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^(?!\.\.?$)[^\x00-\x1f\x7f:/]{1,255}(?!\n)$",
        description="the name of a systemd credential",
    ),
]
TagId = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[A-Za-z0-9]{1,16}(-[A-Za-z0-9]{1,16})?(?!\n)$",
        description='a tag\'s id like "5" or "5-1", in quotes where YAML takes it for something else',
    ),
]
Decibels = Annotated[float, msgspec.Meta(ge=-300, le=300)]
Probability = Annotated[float, msgspec.Meta(gt=0, le=1)]
Duration = Annotated[float, msgspec.Meta(ge=0, le=86_400)]
_TEXTS = {Text, FilePath, CredentialName}
VariantChoice = Literal["auto", "fp32", "int8"]
MqttVersion = Literal["auto", 5, "3.1.1"]
Durability = Literal["power_loss", "process_crash", "memory"]
MAX_EXPIRY_S = 0xFFFF_FFFE  # of MQTT 5; one more is for ever
Expiry = Annotated[int, msgspec.Meta(ge=0, le=MAX_EXPIRY_S)]


class SensorSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who hears.

    id: of its topics and events; null is the host's name.
    """

    id: Text | None = None


class AudioSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The microphone.

    device: its name, a part of that, usb:PATH or card:ID; null is the system's default input.
    channel: the one to hear, from 1, or "mix", the mean of all.
    rate_hz: samples a second; null is 44,100 where the device offers it, else the device's own.
    """

    device: Text | None = None
    channel: Literal["mix"] | Annotated[int, msgspec.Meta(ge=1)] = "mix"
    rate_hz: Annotated[int, msgspec.Meta(ge=4_000, le=384_000)] | None = None


class WindowSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How often it listens.

    hop_s: seconds from one window's start to the next; null is 4.8 for bundles with a large embedding net
        such as VGGish (five of its patches of 0.96 s, so that overlapping windows share them), otherwise 5.
    """

    hop_s: Annotated[float, msgspec.Meta(ge=0.1, le=3_600)] | None = None


class BundleSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which bundle hears. Paths that are not absolute start where the process does.

    path: a folder or an archive; null is what `edgetag bundle install` installed, or the one that ships.
    public_key: whose signature it must bear.
    """

    path: FilePath | None = None
    public_key: FilePath | None = None


class RuntimeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How nets are run.

    variant: which of the bundle's; auto is what `edgetag bench` found faster here.
    threads: of one net.
    """

    variant: VariantChoice = "auto"
    threads: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1


class GateSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which windows are tagged.

    min_laeq_db: of the quieter ones only the level is published; null tags all.
    """

    min_laeq_db: Decibels | None = None


class LevelSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What levels are relative to.

    calibration_db: added to dBFS(A); null leaves levels as they are and marks them as not calibrated.
    """

    calibration_db: Decibels | None = None


class TagSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tag's own rules; null is the rule for all.

    on: probability at which it begins; null is the bundle's threshold.
    off: probability below which it ends; null is `on` times `events.off_ratio`.
    min_duration_s: shorter ones are not published.
    """

    on: Probability | None = None
    off: Probability | None = None
    min_duration_s: Duration | None = None


class EventSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a sound begins and ends.

    off_ratio: a tag ends below its threshold times this.
    min_duration_s: shorter ones are not published.
    tags: a tag's own rules, by its id.
    """

    off_ratio: Probability = 0.8
    min_duration_s: Duration = 0.0
    tags: dict[TagId, TagSettings] = msgspec.field(default_factory=dict)


class MqttSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The broker.

    url: mqtt://host[:port], mqtts:// with TLS, ws:// or wss:// through WebSockets, without credentials; null
        prints events on stdout.
    user: its name there.
    password_file: a file whose first line is the password.
    password_credential: the systemd credential that is the password; at most one of the two.
    prefix: of all topics.
    ca_file: certificates that the broker's must lead to; null is the system's.
    cert_file: the sensor's own certificate, where the broker wants one.
    key_file: its key; null if it is in the same file.
    key_credential: the systemd credential that is the key; at most one of the two.
    alpn: name of the protocol that is asked for in the TLS handshake, for brokers on port 443.
    version: of MQTT; auto is 5, and 3.1.1 where the broker does not speak it.
    keepalive_s: between signs of life.
    session_expiry_s: after that the broker forgets a sensor that has gone. MQTT 5 only, as are the next two.
    will_delay_s: a sensor that is back within that, or within the session's expiry, was never offline.
    message_expiry_s: how long the broker keeps an event for subscribers who are away; null is for ever.
    """

    url: Text | None = None
    user: Text | None = None
    password_file: FilePath | None = None
    password_credential: CredentialName | None = None
    prefix: Text = DEFAULT_PREFIX
    ca_file: FilePath | None = None
    cert_file: FilePath | None = None
    key_file: FilePath | None = None
    key_credential: CredentialName | None = None
    alpn: Text | None = None
    version: MqttVersion = "auto"
    keepalive_s: Annotated[int, msgspec.Meta(ge=5, le=0xFFFF)] = 30
    session_expiry_s: Expiry = 300
    will_delay_s: Expiry = 30
    message_expiry_s: Annotated[int, msgspec.Meta(ge=1, le=MAX_EXPIRY_S)] | None = None


class OutboxSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept until the broker has it.

    durability: what it outlives: power_loss, process_crash, or nothing, in memory.
    max_bytes: of messages; the oldest go when there are more.
    """

    durability: Durability = "process_crash"
    max_bytes: Annotated[int, msgspec.Meta(ge=100_000, le=10**12)] = 200_000_000


class HomeAssistantSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Home Assistant at the same broker.

    discovery: whether the sensor introduces itself.
    prefix: of Home Assistant's own topics.
    """

    discovery: bool = False
    prefix: Text = "homeassistant"


class LogSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is written to stderr.

    level: the least grave that is.
    format: for people, or one JSON object a line.
    """

    level: Literal["debug", "info", "warning", "error"] = "warning"
    format: Literal["console", "json"] = "console"


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of edgetag, the urban-sound tagger."""

    sensor: SensorSettings = msgspec.field(default_factory=SensorSettings)
    audio: AudioSettings = msgspec.field(default_factory=AudioSettings)
    window: WindowSettings = msgspec.field(default_factory=WindowSettings)
    bundle: BundleSettings = msgspec.field(default_factory=BundleSettings)
    runtime: RuntimeSettings = msgspec.field(default_factory=RuntimeSettings)
    gate: GateSettings = msgspec.field(default_factory=GateSettings)
    level: LevelSettings = msgspec.field(default_factory=LevelSettings)
    events: EventSettings = msgspec.field(default_factory=EventSettings)
    mqtt: MqttSettings = msgspec.field(default_factory=MqttSettings)
    outbox: OutboxSettings = msgspec.field(default_factory=OutboxSettings)
    home_assistant: HomeAssistantSettings = msgspec.field(default_factory=HomeAssistantSettings)
    log: LogSettings = msgspec.field(default_factory=LogSettings)


_SECTIONS: dict[str, type[msgspec.Struct]] = {
    field.name: field.type for field in msgspec.structs.fields(Settings)
}
_KINDS: dict[str, Any] = {
    f"{section}.{field.name}": field.type
    for section, kind in _SECTIONS.items()
    for field in msgspec.structs.fields(kind)
}
"""What each setting may be, by its dotted path."""

_VARIABLES = {f"EDGETAG_{path.replace('.', '_').upper()}": path for path in _KINDS}
_VARIABLE_PREFIXES = tuple(f"EDGETAG_{section.upper()}_" for section in _SECTIONS)

_LIVE_SECTIONS = ("bundle.", "runtime.", "gate.", "level.", "events.")
LIVE = frozenset(path for path in _KINDS if path.startswith(_LIVE_SECTIONS)) | {"log.level"}
"""What a running process takes on SIGHUP; everything else waits for its restart."""


def changes(old: Settings, new: Settings) -> list[str]:
    """Dotted paths of the settings that differ, in the file's order.

    >>> changes(Settings(), Settings(runtime=RuntimeSettings(threads=2)))
    ['runtime.threads']
    """
    return [path for path in _KINDS if value_of(old, path) != value_of(new, path)]


def value_of(settings: Settings, path: str) -> Any:  # noqa: ANN401
    """The setting at a dotted path."""
    section, key = path.split(".")
    return getattr(getattr(settings, section), key)


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of the configuration file. What it allows has the right types and ranges;
    `read` also looks at what must fit together.
    """
    schema = msgspec.json.schema(Settings)
    for definition in schema["$defs"].values():
        definition["description"] = cleandoc(definition["description"])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def mqtt_password(settings: Settings, environment: Mapping[str, str] = os.environ) -> Secret | None:
    """The broker's password, read from where the settings say it is; None if they do not.

    Raises:
        InputError: it is not there, cannot be read or is empty.
    """
    mqtt = settings.mqtt
    if mqtt.password_file is not None:
        return read_secret(Path(mqtt.password_file), "mqtt.password_file")
    if mqtt.password_credential is None:
        return None
    file = _credential(mqtt.password_credential, "mqtt.password_credential", environment)
    return read_secret(file, "mqtt.password_credential")


def mqtt_key_file(settings: Settings, environment: Mapping[str, str] = os.environ) -> str | None:
    """Where the key of the sensor's certificate is; None if it is in the certificate's file.

    Raises:
        InputError: it is a systemd credential, and we were given none of that name.
    """
    mqtt = settings.mqtt
    if mqtt.key_credential is None:
        return mqtt.key_file
    return str(_credential(mqtt.key_credential, "mqtt.key_credential", environment))


def _credential(name: str, setting: str, environment: Mapping[str, str]) -> Path:
    """The file in which systemd hands it over. Its name is not quoted: it may be the secret itself."""
    if not (folder := environment.get("CREDENTIALS_DIRECTORY")):
        raise InputError(f"{setting} needs systemd's LoadCredential=; $CREDENTIALS_DIRECTORY is not set")
    if not os.access(file := Path(folder, name), os.F_OK):  # nor may it be one that we cannot get at
        raise InputError(f"{setting} names none of the credentials that systemd handed over")
    return file


@dataclass(frozen=True)
class Reading:
    """What a file and the environment say.

    settings: None if there are faults.
    origins: by dotted path, the file or the variable that each stated setting comes from.
    faults: one sentence each.
    """

    settings: Settings | None
    origins: Mapping[str, str]
    faults: list[str]

    def accepted(self) -> Settings:
        """The settings.

        Raises:
            InputError: there are faults; the first one.
        """
        if self.settings is None:
            raise InputError(self.faults[0])
        return self.settings


def read_settings(path: Path | None, environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings of a configuration file, or the defaults, and the environment's over them.

    Raises:
        InputError: the file cannot be read, is not YAML, or there is an unknown key or an impossible value.
    """
    return read(path, environment).accepted()


def read(path: Path | None, environment: Mapping[str, str] = os.environ) -> Reading:
    """As `read_settings`, with where each setting comes from and with all faults.

    Raises:
        InputError: the file cannot be read or is not YAML.
    """
    faults: list[str] = []
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    in_file = [] if path is None else _in_file(path)
    for stated in [*in_file, *_in_environment(environment)]:
        origins[stated.path] = stated.origin
        try:
            values[stated.path] = _converted(stated)
        except InputError as error:
            faults.append(str(error))
    if faults:
        return Reading(None, origins, faults)
    settings = Settings(**{name: _section(name, values) for name in _SECTIONS})
    faults = [f"{origins.get(path, 'defaults')}: {fault}" for path, fault in _contradictions(settings.mqtt)]
    return Reading(None if faults else settings, origins, faults)


class _Stated(NamedTuple):
    """A setting that somebody stated.

    path: dotted; a section that is none, or a key that nobody knows, too.
    value: as YAML has it.
    origin: the file, or the variable.
    name: what sentences about it begin with.
    """

    path: str
    value: Any
    origin: str
    name: str


def _in_file(file: Path) -> Iterator[_Stated]:
    content = _load(_file_text(file), f"{file}: ")
    if content is None:
        return
    if not isinstance(content, dict):
        raise InputError(f"{file} is {_type_name(content)}; expected sections: {', '.join(_SECTIONS)}")
    for path, value in _flat(content):
        yield _Stated(path, value, str(file), f"{file}: {path}")


def _file_text(file: Path) -> bytes:
    try:
        text = read_plain_file(file, MAX_BYTES, follow=True)
    except NotPlainError as error:
        raise InputError(f"{file} is {error}, not a configuration file") from None
    except PermissionError as error:
        remedy = f"{own_user()} must be allowed to read it, and to enter its folder"
        raise InputError(f"{file} cannot be read ({error.strerror}): {remedy}") from error
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror})") from error
    if len(text) > MAX_BYTES:
        raise InputError(f"{file} is longer than the {MAX_BYTES} bytes a configuration may have")
    return text


def _load(text: bytes, name: str) -> Any:  # noqa: ANN401
    """What YAML says. A refusal says where it breaks off, but quotes nothing: it may be a secret.

    Raises:
        InputError: it is not strict YAML.
    """
    try:
        return load_yaml(text)
    except ValueError as error:
        fault = error.__cause__
        if isinstance(fault, yaml.MarkedYAMLError) and (mark := fault.problem_mark):
            where = f"line {mark.line + 1}, column {mark.column + 1}"
            raise InputError(f"{name}{where}: {fault.problem}") from None
        raise InputError(f"{name}{' '.join(str(error).split())}") from None


def _flat(content: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Settings by dotted path. A section with nothing in it states nothing."""
    for section, keys in content.items():
        if section not in _SECTIONS or not isinstance(keys, dict | None):
            yield _shown_key(section), keys
        else:
            yield from ((f"{section}.{_shown_key(key)}", value) for key, value in (keys or {}).items())


def _section(name: str, values: Mapping[str, Any]) -> Any:  # noqa: ANN401
    prefix = f"{name}."
    return _SECTIONS[name](
        **{path.removeprefix(prefix): value for path, value in values.items() if path.startswith(prefix)}
    )


def _in_environment(environment: Mapping[str, str]) -> Iterator[_Stated]:
    for variable, text in sorted(environment.items()):
        if path := _VARIABLES.get(variable):
            yield _Stated(path, _environment_value(text, _KINDS[path]), variable, variable)
        elif variable.startswith(_VARIABLE_PREFIXES):
            yield _Stated(variable, text, variable, _shown_key(variable))


def _environment_value(text: str, kind: Any) -> Any:  # noqa: ANN401
    """Text as it is (`Mic #2: left` is one name), everything else as YAML, or as it is, which is no value."""
    if text in ("", "null"):
        return None
    if not {kind, *get_args(kind)}.isdisjoint(_TEXTS):
        return text
    try:
        return load_yaml(text.encode("utf-8"))
    except ValueError:
        return text


def _converted(stated: _Stated) -> Any:  # noqa: ANN401
    """The setting's value, of its type.

    Raises:
        InputError: there is no such setting, or it cannot be that.
    """
    path, value, _, name = stated
    if path in _SECTIONS:
        raise InputError(f"{name} is {_type_name(value)}; expected settings, indented below it")
    if path not in _KINDS:
        known = _VARIABLES if path.startswith("EDGETAG_") else [*_SECTIONS, *_KINDS]
        raise InputError(f"{name} is unknown{_hint(path, known)}")
    if path == "events.tags":
        return _tags(value, name)
    # What stands in the place of a broker's settings may be a password.
    if isinstance(value, str) and not _is_utf8(value):
        raise InputError(f"{name} is not UTF-8")
    found = _type_name(value) if path.startswith("mqtt.") else _shown(value)
    value = _scalar(value, _KINDS[path], name, found)
    if value is not None and path in _CHECKS:
        try:
            _CHECKS[path](value)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
    return value


_TRUTHS = {True: "on", False: "off"}
"""To YAML 1.1, `on` and `off` are booleans, as keys, too."""


def _is_utf8(text: str) -> bool:
    """Whether it came from bytes that are UTF-8; in a variable any bytes can be."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _tags(value: Any, name: str) -> dict[str, TagSettings]:  # noqa: ANN401
    if not isinstance(value, dict | None):
        raise InputError(f"{name} is {_shown(value)}; expected rules by tag, e.g. {{'5': {{on: 0.6}}}}")
    tags: dict[str, TagSettings] = {}
    for key, rules in (value or {}).items():
        tag = str(key) if type(key) is int else key  # 5: for "5":
        _scalar(tag, TagId, f"{name}: a key", _shown_key(tag))
        if tag in tags:
            raise InputError(f"{name}.{tag} is there twice, as a number and as text")
        tags[tag] = _tag(rules, f"{name}.{tag}", f"events.tags.{tag}")
    return tags


def _tag(stated: Any, name: str, path: str) -> TagSettings:  # noqa: ANN401
    if not isinstance(stated, dict | None):
        raise InputError(f"{name} is {_shown(stated)}; expected on, off and min_duration_s, or some of them")
    kinds = {field.name: field.type for field in msgspec.structs.fields(TagSettings)}
    rules: dict[str, Any] = {}
    for stated_key, value in (stated or {}).items():
        key = _TRUTHS[stated_key] if isinstance(stated_key, bool) else stated_key
        if key not in kinds:
            near = _hint(f"{path}.{_shown_key(key)}", [f"{path}.{known}" for known in kinds])
            raise InputError(f"{name}.{_shown_key(key)} is unknown{near}")
        if key in rules:
            raise InputError(f"{name}.{key} is there twice, with quotes and without")
        rules[key] = _scalar(value, kinds[key], f"{name}.{key}", _shown(value))
    tag = TagSettings(**rules)
    if tag.on is not None and tag.off is not None and tag.off > tag.on:
        raise InputError(f"{name}.off is {tag.off}; expected at most what on is, {tag.on}")
    return tag


def _scalar(value: Any, kind: Any, name: str, found: str) -> Any:  # noqa: ANN401
    """`value` as its type, e.g. a whole number as a float.

    Raises:
        InputError: it is not of that type.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        expected = _expected(inspect.type_info(kind))
        raise InputError(f"{name} is {found}; expected {expected}") from None


def _check_url(url: str) -> None:
    if "@" in url:
        raise InputError(
            "a user and a password do not belong here; write mqtt.user, and mqtt.password_file for a file "
            "with the password (or mqtt.password_credential)"
        )
    parse_url(url)


_CHECKS: dict[str, Callable[[str], object]] = {
    "sensor.id": check_sensor,
    "mqtt.url": _check_url,
    "mqtt.prefix": check_prefix,
    "home_assistant.prefix": check_prefix,
}
"""What a type cannot say."""


def _contradictions(mqtt: MqttSettings) -> Iterator[tuple[str, str]]:
    """The path of a setting that does not go with the others, and why."""
    passwords = [key for key in ("password_file", "password_credential") if getattr(mqtt, key) is not None]
    if len(passwords) == 2:
        yield (
            "mqtt.password_credential",
            "mqtt.password_credential and mqtt.password_file: one of them is enough",
        )
    elif passwords and mqtt.user is None:
        yield f"mqtt.{passwords[0]}", f"mqtt.{passwords[0]} needs mqtt.user, whose password it is"
    is_tls = mqtt.url is not None and parse_url(mqtt.url).is_tls
    for key in ("ca_file", "cert_file", "key_file", "key_credential", "alpn"):
        if getattr(mqtt, key) is not None and not is_tls:
            yield f"mqtt.{key}", f"mqtt.{key} needs TLS: a mqtt.url that begins with mqtts:// or wss://"
    keys = [key for key in ("key_file", "key_credential") if getattr(mqtt, key) is not None]
    if len(keys) == 2:
        yield "mqtt.key_credential", "mqtt.key_credential and mqtt.key_file: one of them is enough"
    elif keys and mqtt.cert_file is None:
        yield f"mqtt.{keys[0]}", f"mqtt.{keys[0]} needs mqtt.cert_file, whose key it is"


def _expected(kind: inspect.Type) -> str:
    *others, last = _alternatives(kind)
    return f"{', '.join(others)} or {last}" if others else last


def _alternatives(kind: inspect.Type) -> Iterator[str]:
    """What a value may be, in words.

    >>> list(_alternatives(inspect.type_info(Literal["mix"] | Annotated[int, msgspec.Meta(ge=1)])))
    ['mix', 'a whole number, at least 1']
    """
    match kind:
        case inspect.Metadata(extra_json_schema={"description": str(description)}):
            yield description
        case inspect.UnionType(types=types):
            for part in sorted(types, key=lambda part: not isinstance(part, inspect.NoneType)):
                yield from _alternatives(part)
        case inspect.LiteralType(values=values):
            yield from map(str, values)
        case inspect.IntType():
            yield f"a whole number{_bounds(kind)}"
        case inspect.FloatType():
            yield f"a number{_bounds(kind)}"
        case _:
            yield "null"


def _bounds(kind: inspect.IntType | inspect.FloatType) -> str:
    if kind.ge is not None and kind.le is not None:
        return f" from {kind.ge} to {kind.le}"
    words = {"above": kind.gt, "at least": kind.ge, "at most": kind.le}
    return ", ".join(["", *(f"{word} {bound}" for word, bound in words.items() if bound is not None)])


def _hint(name: str, known: Iterable[str]) -> str:
    """What may have been meant: the same key elsewhere, or one like it beside it; else what there is."""
    parent, _, key = name.rpartition(".")
    same = [path for path in known if path.rpartition(".")[2] == key]
    siblings = [path for path in known if path.rpartition(".")[0] == parent]
    by_key = {path.rpartition(".")[2]: path for path in [*([] if parent else known), *siblings]}
    if likely := same or [by_key[near] for near in difflib.get_close_matches(key, by_key, 1)]:
        return f"; did you mean {likely[0]}?"
    return f"; there are {', '.join(siblings)}" if siblings else ""


def _shown(value: Any) -> str:  # noqa: ANN401
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]} …"


def _shown_key(key: Any) -> str:  # noqa: ANN401
    """As it is written; but `url mqtt://user:password@host` without its colon is a key, too."""
    if isinstance(key, str) and re.fullmatch(r"[\w-]{1,60}", key):
        return key
    return "…" if "://" in str(key) else _shown(key)


def _type_name(value: Any) -> str:  # noqa: ANN401
    names = {dict: "a mapping", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
