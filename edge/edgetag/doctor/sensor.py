"""What the sensor is told: its configuration, its password, the time."""

import dataclasses
import stat
import time
from pathlib import Path

from edgetag.capture.clock import kernel_clock_synced
from edgetag.config import Settings, mqtt_password, read
from edgetag.contract.errors import InputError, NetworkError
from edgetag.delivery.address import check_sensor, own_name, parse_url
from edgetag.doctor.finding import Case, Finding, credential_remedy, failed


def configuration(case: Case) -> Finding:
    """As `edgetag config check`; and the sensor's id can be one."""
    try:
        reading = read(case.config)
    except InputError as error:
        return failed(error, "let --config name a YAML file that this user can read", InputError)
    if reading.faults:
        remedy = "correct it; `edgetag config schema` prints all settings there are"
        return failed("; ".join(reading.faults), remedy, InputError)
    settings = reading.accepted()
    try:
        _take(settings, case)
    except InputError as error:
        return failed(error, "set sensor.id; if it is null, the host's name is taken", InputError)
    variables = sorted(origin for origin in set(reading.origins.values()) if origin.startswith("EDGETAG_"))
    where = ", ".join([str(case.config or "no file, the defaults"), *variables])
    return Finding("ok", f"{where}; sensor {case.sensor}; events go to {case.address or 'stdout'}")


def _take(settings: Settings, case: Case) -> None:
    """For the other checks.

    Raises:
        InputError: the sensor's id can be none.
    """
    case.sensor = check_sensor(settings.sensor.id or own_name())
    case.settings = settings
    if settings.mqtt.url is not None:
        case.address = dataclasses.replace(parse_url(settings.mqtt.url), user=settings.mqtt.user)


def password(case: Case) -> Finding:
    """Where it comes from; it is not shown."""
    mqtt = case.settings.mqtt
    try:
        secret = mqtt_password(case.settings)
    except InputError as error:
        return failed(error, _password_remedy(case), InputError)
    if secret is None:
        return Finding("skipped", "neither mqtt.password_file nor mqtt.password_credential is set")
    case.address = dataclasses.replace(case.broker, password=secret.reveal())
    if mqtt.password_file is None:
        return Finding("ok", "from mqtt.password_credential")
    if Path(mqtt.password_file).stat().st_mode & stat.S_IROTH:
        return Finding("warning", "mqtt.password_file can be read by everybody", "chmod o-r, on that file")
    return Finding("ok", "from mqtt.password_file")


def _password_remedy(case: Case) -> str:
    if (name := case.settings.mqtt.password_credential) is None:
        return "its first line is the password; the sensor's user must be able to read it, and nobody else"
    return credential_remedy(name)


def clock(_case: Case) -> Finding:
    """Something keeps the system clock in step, by the kernel's word."""
    if kernel_clock_synced():
        return Finding("ok", "kept in step, says the kernel")
    now = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
    remedy = "`timedatectl set-ntp true`, or install chrony; until then events say so (clock.synced)"
    return failed(f"nothing keeps it in step; it says {now} UTC", remedy, NetworkError)
