"""The Node-RED flow in `deploy/examples`: what it must hold to be imported, and what its functions do.

`tests/system/test_node_red.py` runs it in Node-RED, `tests/system/test_examples.py` the commands beside it.
"""

import itertools
import json
import random
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from edgetag.contract.event import DEFAULT_PREFIX, encode, timestamp
from fakes import sound_event, tags_event

EXAMPLES = Path(__file__).parents[2] / "deploy" / "examples"
FLOW: list[dict[str, Any]] = json.loads((EXAMPLES / "node-red.json").read_text())
NODES = {node["id"]: node for node in FLOW}
BY_NAME = {node["name"]: node for node in FLOW if node.get("name")}
(BROKER,) = (node for node in FLOW if node["type"] == "mqtt-broker")

CONFIGURATION = {"tab", "group", "mqtt-broker"}  # is not drawn as a node
CORE = CONFIGURATION | {"catch", "change", "comment", "debug", "function", "mqtt in", "rbe", "switch"}
DRAWN = [node for node in FLOW if node["type"] not in CONFIGURATION]
# What opens another's door, in a node or in a broker's settings.
SECRETS = {"credentials", "user", "password", "username", "key", "cert", "credentialSecret", "token"}

Message = dict[str, Any]


def wires(node: dict[str, Any]) -> list[str]:
    return [end for output in node["wires"] for end in output]


def keys(value: object) -> set[str]:
    """The names of all fields, however deep."""
    if isinstance(value, dict):
        return set(value) | set().union(*map(keys, value.values()))
    return set().union(*map(keys, value)) if isinstance(value, list) else set()


# -- what can be imported --------------------------------------------------------------------------------


def test_ids_are_unique_and_all_that_is_referred_to_is_there() -> None:
    (tab,) = (node["id"] for node in FLOW if node["type"] == "tab")
    assert len(NODES) == len(FLOW)
    for node in DRAWN:
        assert node["z"] == tab
        assert set(wires(node)) <= {other["id"] for other in DRAWN}
        assert node.get("broker", BROKER["id"]) == BROKER["id"]
        assert "g" not in node or node["id"] in NODES[node["g"]]["nodes"]
    for group in (node for node in FLOW if node["type"] == "group"):
        assert all(NODES[id]["g"] == group["id"] for id in group["nodes"])


def test_every_node_comes_with_node_red() -> None:
    assert {node["type"] for node in FLOW} <= CORE
    assert all(node["libs"] == [] for node in FLOW if node["type"] == "function")


def test_it_holds_no_secret_and_speaks_to_this_machine_only() -> None:
    assert not keys(FLOW) & SECRETS
    assert (BROKER["broker"], BROKER["port"], BROKER["usetls"]) == ("localhost", "1883", False)


def test_it_subscribes_to_the_products_topics_at_least_once() -> None:
    subscriptions = [node for node in FLOW if node["type"] == "mqtt in"]
    assert sorted(node["topic"] for node in subscriptions) == [
        f"{DEFAULT_PREFIX}/+/{kind}" for kind in ("events", "status", "tags")
    ]
    assert {node["qos"] for node in subscriptions} == {"1"}


def test_what_is_published_while_it_is_away_waits_at_the_broker() -> None:
    """A session of a name, that is neither begun anew nor left."""
    assert (BROKER["clientid"], BROKER["protocolVersion"]) == ("edgetag-flow", "5")
    assert (BROKER["cleansession"], BROKER["autoUnsubscribe"]) == (False, False)
    assert int(BROKER["sessionExpiry"]) == 86_400


def test_only_what_the_broker_kept_is_called_retained() -> None:
    """With "retain as published", a new state could not be told from one that was found."""
    assert not any(node["rap"] for node in FLOW if node["type"] == "mqtt in")


def test_all_is_reached_and_leads_to_something_that_is_seen() -> None:
    reached = {end for node in DRAWN for end in wires(node)}
    for node in DRAWN:
        if node["type"] not in ("mqtt in", "catch", "comment"):
            assert node["id"] in reached, node["name"]
        if node["type"] not in ("debug", "comment"):
            assert all(node["wires"]), node["name"]


def test_every_outlet_is_wired() -> None:
    for node in DRAWN:
        assert len(node["wires"]) == len(node.get("rules", [])) or node["type"] != "switch"
        assert len(node["wires"]) == node.get("outputs", len(node["wires"]))


def test_no_two_nodes_lie_on_each_other() -> None:
    """A node is 30 high and at least 100 wide; `x` and `y` are its middle."""
    for one, other in itertools.combinations(DRAWN, 2):
        assert abs(one["x"] - other["x"]) >= 100 or abs(one["y"] - other["y"]) >= 40, (one, other)


def test_it_runs_from_left_to_right() -> None:
    for node in DRAWN:
        assert all(NODES[end]["x"] > node["x"] for end in wires(node)), node["name"]


def test_what_it_asks_to_be_set_is_there() -> None:
    (tab,) = (node for node in FLOW if node["type"] == "tab")
    settings = {setting["name"] for setting in tab["env"]}
    help_text = BY_NAME["Start here: what to set (double-click)"]["info"]
    used = re.findall(r'(?:\$env|env\.get)\(\\"(\w+)\\"\)', (EXAMPLES / "node-red.json").read_text())
    assert settings == set(used) == set(re.findall(r"`([A-Z_]+)`", help_text))


# -- what its functions do -------------------------------------------------------------------------------

HARNESS = """
const {initialize, code, messages, settings} = JSON.parse(require("fs").readFileSync(0, "utf8"));
const stored = {};
const context = {get: name => stored[name], set: (name, value) => { stored[name] = value; }};
const env = {get: name => settings[name]};
new Function("context", "env", initialize)(context, env);
const step = new Function("msg", "context", "env", code);
const outputs = messages.map(msg => step(msg, context, env) ?? null);
console.log(JSON.stringify({outputs, n_seen: stored.seen?.size}));
"""


def run_function(name: str, messages: list[Message], **settings: float) -> dict[str, Any]:
    """What a function node returns for these messages, one after the other, as Node-RED would call it."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed: what the flow's functions do is not looked at")
    function = BY_NAME[name]
    asked = {
        "initialize": function["initialize"],
        "code": function["func"],
        "messages": messages,
        "settings": settings,
    }
    done = subprocess.run(
        [node, "-e", HARNESS], input=json.dumps(asked), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def message(event: object, kind: str = "tags", sensor: str = "lamp") -> Message:
    return {"topic": f"{DEFAULT_PREFIX}/{sensor}/{kind}", "payload": event}


def test_each_message_passes_once_whatever_the_order() -> None:
    """Of every (topic, boot, seq) the first, and the first as it came."""
    draw = random.Random(0)
    events = [
        message({"boot": draw.choice("ab"), "seq": draw.randrange(50), "n": n}, kind, sensor)
        for n, kind, sensor in (
            (n, draw.choice(["tags", "events"]), draw.choice(["lamp-1", "lamp-2"])) for n in range(2_000)
        )
    ]
    first: dict[tuple[str, str, int], Message] = {}
    for event in events:
        first.setdefault((event["topic"], event["payload"]["boot"], event["payload"]["seq"]), event)
    passed = [output for output in run_function("Each once", events)["outputs"] if output is not None]
    assert passed == list(first.values())


def test_ten_thousand_messages_are_remembered_and_no_more() -> None:
    n, excess = 10_000, 500
    events = [message({"boot": "a", "seq": seq}) for seq in range(n + excess)]
    known = events[excess:]  # the latest n, so nothing is forgotten meanwhile
    result = run_function("Each once", [*events, *known, events[0]])
    outputs = result["outputs"]
    assert None not in outputs[: n + excess]
    assert set(map(str, outputs[n + excess : -1])) == {"None"}
    assert outputs[-1] == events[0], "it was forgotten long ago"
    assert result["n_seen"] == n


@pytest.mark.parametrize(
    "payload", [None, 7, "online", [], {}, {"boot": "a"}, {"seq": 1}, {"boot": 1, "seq": 1}]
)
def test_what_is_no_event_does_not_pass(payload: object) -> None:
    assert run_function("Each once", [message(payload)])["outputs"] == [None]


def outlet(event: bytes, age_s: float, late_after_s: float = 60.0) -> int:
    """Through which outlet of the function a message leaves whose sound ended so long ago."""
    payload = json.loads(event) | {"end": timestamp(time.time() - age_s)}
    (output,) = run_function("On time?", [message(payload)], LATE_AFTER_S=late_after_s)["outputs"]
    (number,) = (number for number, msg in enumerate(output) if msg is not None)
    assert output[number]["payload"] == payload
    return number


def test_late_is_what_says_so_or_is_older_than_allowed() -> None:
    """Also by the clock of a sensor that is ahead."""
    on_time, late = 0, 1
    assert outlet(encode(tags_event()), 0.0) == outlet(encode(sound_event()), 0.0) == on_time
    assert outlet(encode(tags_event(late=True)), 0.0) == late
    assert outlet(encode(tags_event()), 7_200.0) == outlet(encode(sound_event()), 7_200.0) == late
    assert outlet(encode(sound_event()), 7_200.0, late_after_s=86_400.0) == on_time
    assert outlet(encode(sound_event()), -7_200.0) == on_time


@pytest.mark.parametrize("end", [None, "yesterday", 7])
def test_what_says_no_time_is_not_acted_on(end: object) -> None:
    """Seven is a time to JavaScript, of 1970 or of 2001."""
    msg = message({"boot": "a", "seq": 1, "end": end})
    assert run_function("On time?", [msg], LATE_AFTER_S=60)["outputs"] == [[None, msg]]


# -- what is written beside it ---------------------------------------------------------------------------


def test_what_the_readme_calls_by_name_is_there() -> None:
    text = (EXAMPLES / "README.md").read_text()
    section = text.partition("\n## Node-RED\n")[2].partition("\n## ")[0]
    places = [place for place in re.findall(r"\*([^*]+)\*", section) if place not in ("Import", "Pitfall")]
    assert len(places) >= 3
    assert set(places) <= BY_NAME.keys()
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert (EXAMPLES / link).exists(), link
