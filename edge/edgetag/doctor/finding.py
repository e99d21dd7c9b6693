"""What a check finds, and what checks have in common. Nothing is printed in this room."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from edgetag.config import Settings
from edgetag.contract.errors import EdgetagError
from edgetag.delivery.address import BrokerAddress

if TYPE_CHECKING:
    from edgetag.doctor.broker import Login

Verdict = Literal["ok", "warning", "failed", "skipped"]


class Finding(NamedTuple):
    """What was found.

    text: a sentence or two; no secret.
    remedy: what to do, where there is something to do.
    exit_code: of a failure, as in `edgetag.contract.errors`.
    """

    verdict: Verdict
    text: str
    remedy: str = ""
    exit_code: int = 0


def credential_remedy(name: str) -> str:
    """For whoever was not given a systemd credential of this name."""
    return (
        f"its place is /etc/credstore/{name}, readable by root alone; systemd gives it to the service only: "
        "to look as the service does, `sudo edgetag-doctor`"
    )


def failed(fault: EdgetagError | str, remedy: str, kind: type[EdgetagError]) -> Finding:
    """A failure, with the exit code of a kind of error."""
    return Finding("failed", str(fault), remedy, kind.exit_code)


@dataclass
class Case:
    """What is examined, and what earlier checks found out for later ones.

    config: the configuration file, if there is one.
    state: the state directory.
    address: the broker, with its password once that is known; None where there is none.
    login: the connection, once the broker has accepted it.
    """

    config: Path | None
    state: Path
    settings: Settings = field(default_factory=Settings)
    sensor: str = ""
    address: BrokerAddress | None = None
    login: "Login | None" = None

    @property
    def broker(self) -> BrokerAddress:
        """The address, for checks that are made only with a broker."""
        assert self.address is not None, "there is no broker"
        return self.address
