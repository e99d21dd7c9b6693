"""What leaves the sensor, and what stays on its disk, is what edgetag says and nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "code",
    [
        "from edgetag import Tagger; Tagger.load()",
        "import edgetag_train.onnx_net, onnxruntime; from edgetag import Tagger; Tagger.load()",
    ],
)
def test_a_library_with_telemetry_keeps_quiet(tmp_path: Path, code: str) -> None:
    """ONNX Runtime writes neither a device id nor a database of events into the home directory."""
    if "train" in code:
        pytest.importorskip("torch")
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)
    assert list(tmp_path.rglob("*")) == []
