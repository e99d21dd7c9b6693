"""The offline trainer: recordings and annotations in, a bundle out. It never runs on a sensor."""

import edgetag  # noqa: F401  before ONNX Runtime, whose telemetry it turns off
