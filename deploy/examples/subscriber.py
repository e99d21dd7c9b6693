"""A subscriber in forty lines: every window and sound of every sensor once, as a line of JSON on stdout.

    pip install paho-mqtt
    python subscriber.py broker.example 1883

The broker keeps for it what is published while it is away, for a day. To know duplicates after a restart of
its own, too, let (sensor, kind, boot, seq) be the key of the table you write to.
"""

import json
import sys

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

TOPICS = [("sonyc/v1/+/tags", 1), ("sonyc/v1/+/events", 1)]
DAY_S = 86_400
REMEMBERED = 10_000  # events: far more than a sensor has on the way when its connection breaks

seen: dict[tuple[str, ...], None] = {}


def on_message(_client: Client, _userdata: object, message: MQTTMessage) -> None:
    """Delivery is at least once: (sensor, boot, seq) is unique, on each of the two topics."""
    try:
        event = json.loads(message.payload)
        sensor, kind = message.topic.split("/")[-2:]
        key = sensor, kind, str(event["boot"]), str(event["seq"])
    except (ValueError, TypeError, LookupError, RecursionError):
        return  # anybody may publish anything
    if key not in seen:
        seen[key] = None
        if len(seen) > REMEMBERED:
            del seen[next(iter(seen))]  # the oldest
        print(json.dumps(event), flush=True)


def main(host: str, port: int) -> None:
    client = Client(CallbackAPIVersion.VERSION2, "example-subscriber", protocol=MQTTProtocolVersion.MQTTv5)
    # With a password: client.username_pw_set("reader", password). With TLS: client.tls_set().
    client.on_message = on_message
    client.on_connect = lambda client, *_: client.subscribe(TOPICS)  # again after a reconnect
    session = Properties(PacketTypes.CONNECT)
    session.SessionExpiryInterval = DAY_S
    try:
        client.connect(host, port, clean_start=False, properties=session)
        client.loop_forever()  # reconnects by itself
    except OSError as error:
        sys.exit(f"no broker at {host}:{port}: {error}")
    except KeyboardInterrupt:
        client.disconnect()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
