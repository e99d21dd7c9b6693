"""`edgetag run`, that says on its way how far it has come: `milestones.py PYTHON -m edgetag run …`.

`footprint` runs it, by the Python whose edgetag it measures. Whom systemd's words go to gets more of them:
`X_MILESTONE=imported`, `=loaded` (the bundle has passed its self-test) and `=opened` (the microphone); and
`X_BESIDE_KB=`, the most that was resident of a process of its own, when it has loaded.
"""

import os
import resource
import socket
import sys
from collections.abc import Callable
from importlib import import_module
from typing import ParamSpec, TypeVar

P, R = ParamSpec("P"), TypeVar("R")

# What a sensor with a broker needs sooner or later: here it is imported at once, so that it can be timed.
MODULES = (
    "edgetag.cli",
    "edgetag.capture.portaudio",
    "edgetag.listener",
    "edgetag.loading",
    "edgetag.publishing",
    "edgetag.replacement",
    "sounddevice",
)


def say(word: str) -> None:
    """To whom READY=1 goes."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(word.encode(), os.environ["NOTIFY_SOCKET"])


def announced(milestone: str, do: Callable[P, R]) -> Callable[P, R]:
    """The same, and the milestone when it has been done."""

    def done(*args: P.args, **kwargs: P.kwargs) -> R:
        result = do(*args, **kwargs)
        say(f"X_BESIDE_KB={resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss}")
        say(f"X_MILESTONE={milestone}")
        return result

    return done


def main() -> None:
    """Run it."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as `edgetag` does, before NumPy is imported
    for module in MODULES:
        import_module(module)
    say("X_MILESTONE=imported")
    from edgetag import cli, loading
    from edgetag.capture import portaudio

    loading.Loader.load_or_previous = announced("loaded", loading.Loader.load_or_previous)
    portaudio.PortAudioDevice = announced("opened", portaudio.PortAudioDevice)
    sys.argv = ["edgetag", *sys.argv[sys.argv.index("edgetag") + 1 :]]
    cli.main()


if __name__ == "__main__":
    main()
