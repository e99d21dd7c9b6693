"""`python -m edgetag.contract DIRECTORY` writes the messages' JSON Schemas there."""

import json
import sys
from pathlib import Path

from edgetag.contract.event import MESSAGES, json_schema

for kind in MESSAGES:
    text = json.dumps(json_schema(kind), indent=1, ensure_ascii=False)
    (Path(sys.argv[1]) / f"{kind}.json").write_text(text + "\n", encoding="utf-8")
