"""The fleet's bench with a few sensors: an outage loses nothing, whatever it measures."""

import pytest

from bench.fleet import measure
from system.test_mosquitto import pytestmark as needs_mosquitto

pytestmark = [needs_mosquitto, pytest.mark.soak]


def test_an_outage_loses_nothing_of_any_sensor() -> None:
    outcome = measure(n_sensors=24, hop_s=0.5, steady_s=5, outage_s=15)
    assert (outcome.lost, outcome.out_of_order) == (0, 0)
    assert outcome.backlog > 0
    assert outcome.sent >= 24 * 20 / 0.5
