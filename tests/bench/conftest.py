"""What the benchmark alone needs need not be there for its tests."""

import importlib.util

# LiteRT, which `make bench` installs: pytest looks for doctests in every module, and imports it for that.
collect_ignore = [] if importlib.util.find_spec("ai_edge_litert") else ["side_by_side/yamnet_side.py"]
