"""What one machine hears: `portability_probe.py QUESTION ANSWER`, run inside it by `test_portability`.

It needs nothing but an installed edgetag. The question holds windows, and their features as another machine
computed them; the answer holds this machine's own features, and the probabilities that every net of the
bundle that ships gives for both.

```
question   pcm [n, 441000] int16, feature_<input> [n, …]
answer     own_<input> [n, …]                    this machine's front end
           <variant>/<net>/given [n, c]          its nets, on the question's features
           <variant>/<net>/own [N_OWN, c]        its nets, on its own
           <variant>/root/seconds, frontend/seconds      of one window, median
```
"""

import sys
import time

import numpy as np
from numpy.typing import NDArray

from edgetag import Tagger
from edgetag.tagging.bundle import load_bundle, starter_path

N_OWN = 2


def main(question_path: str, answer_path: str) -> None:
    """Answer."""
    with np.load(question_path) as stored:
        question = dict(stored)
    windows = question["pcm"].astype(np.float32) * np.float32(1 / 32768)
    given = {name[len("feature_") :]: question[name] for name in question if name.startswith("feature_")}
    answer: dict[str, NDArray[np.generic]] = {}
    for variant in load_bundle(starter_path()).manifest.variants:
        tagger = Tagger.load(variant=variant)  # the golden windows are heard here
        own, frontend_s = [], []
        for window in windows:
            started_s = time.perf_counter()
            own.append({name: feature.copy() for name, feature in tagger.features(window).items()})
            frontend_s.append(time.perf_counter() - started_s)
        for name in given:
            answer[f"own_{name}"] = np.stack([features[name] for features in own])
        answer["frontend/seconds"] = np.asarray(np.median(frontend_s))
        for net_name, net in tagger.bundle.nets.items():
            probabilities, net_s = [], []
            for row in range(len(windows)):
                started_s = time.perf_counter()
                probabilities.append(net({name: given[name][row] for name in given})[0])
                net_s.append(time.perf_counter() - started_s)
            answer[f"{variant}/{net_name}/given"] = np.stack(probabilities)
            answer[f"{variant}/{net_name}/own"] = np.stack([net(features)[0] for features in own[:N_OWN]])
            if net_name == "root":
                answer[f"{variant}/root/seconds"] = np.asarray(np.median(net_s))
    np.savez(answer_path, allow_pickle=False, **answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
