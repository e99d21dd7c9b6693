"""From settings to a publisher: which broker, how to reach it, what is kept until it has it."""

import dataclasses
import time
from pathlib import Path
from typing import Literal, cast

from edgetag.config import Settings, mqtt_key_file, mqtt_password
from edgetag.contract.event import Info, Status, timestamp
from edgetag.delivery.address import BrokerAddress, parse_url
from edgetag.delivery.background import Background
from edgetag.delivery.connection import Connecting, Tls
from edgetag.delivery.homeassistant import HomeAssistant, birth_topic
from edgetag.delivery.mqtt import MqttPublisher
from edgetag.delivery.outbox import FILE_NAME, Outbox
from edgetag.delivery.sink import Courier


def broker_of(settings: Settings) -> BrokerAddress | None:
    """The configured broker, with its user and password; None if there is none.

    Raises:
        InputError: the password cannot be read.
    """
    if settings.mqtt.url is None:
        return None
    secret = mqtt_password(settings)
    password = None if secret is None else secret.reveal()
    return dataclasses.replace(parse_url(settings.mqtt.url), user=settings.mqtt.user, password=password)


def connecting(settings: Settings) -> Connecting:
    """How to reach the broker.

    Raises:
        InputError: the certificate's key is a systemd credential that we were not given.
    """
    mqtt = settings.mqtt
    return Connecting(
        version=cast("Literal['auto', '5', '3.1.1']", str(mqtt.version)),
        keepalive_s=mqtt.keepalive_s,
        session_expiry_s=mqtt.session_expiry_s,
        tls=Tls(mqtt.ca_file, mqtt.cert_file, mqtt_key_file(settings), mqtt.alpn),
    )


def publisher(
    settings: Settings,
    address: BrokerAddress,
    *,
    sensor: str,
    boot_id: str,
    info: Info,
    state_directory: Path,
    flush_s: float,
) -> Background:
    """What publishes to this broker, as the settings say, and waits for it as long as need be.

    Args:
        sensor, boot_id: who publishes.
        info: the first one.
        state_directory: where the outbox is.
        flush_s: longest wait for what is left at the end.

    Raises:
        InputError: as `connecting`.
    """
    mqtt, home, how = settings.mqtt, settings.home_assistant, connecting(settings)

    def courier(status: Status, info: Info) -> Courier:
        publisher = MqttPublisher(
            address,
            sensor=sensor,
            info=info,
            boot_id=boot_id,
            prefix=mqtt.prefix,
            status=status,
            farewell="stopped",
            reconnect=False,
            how=how,
            will_delay_s=mqtt.will_delay_s,
            message_expiry_s=mqtt.message_expiry_s,
            subscribe=[birth_topic(home.prefix)] if home.discovery else [],
        )
        if not home.discovery:
            return publisher
        return HomeAssistant(
            publisher, sensor=sensor, prefix=mqtt.prefix, discovery_prefix=home.prefix, info=info
        )

    outbox = Outbox(
        state_directory / FILE_NAME,
        durability=settings.outbox.durability,
        max_bytes=settings.outbox.max_bytes,
    )
    starting = Status(state="no_audio", reason="starting", boot_id=boot_id, since=timestamp(time.time()))
    return Background(courier, outbox=outbox, status=starting, info=info, flush_s=flush_s)
