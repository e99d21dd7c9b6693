"""The configuration file: every setting typed, every unknown key refused.

```yaml
bundle:
  path: null              # a bundle directory or archive; what `edgetag bundle install` installed, if absent
  public_key: null        # a .pub file: bundles without its signature are refused
runtime:
  variant: auto           # auto | fp32 | int8; auto takes what `edgetag bench` found faster here
  threads: 1              # of one net
```
"""

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from edgetag.contract.errors import InputError
from edgetag.contract.strict_yaml import load_yaml
from edgetag.tagging.container import NotPlainError, read_plain_file

MAX_BYTES = 2**16
FilePath = Annotated[str, msgspec.Meta(pattern=r"^[^\x00]+$")]
VariantChoice = Literal["auto", "fp32", "int8"]


class BundleSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which bundle hears. Paths that are not absolute start where the process does."""

    path: FilePath | None = None
    public_key: FilePath | None = None


class RuntimeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How nets are run."""

    variant: VariantChoice = "auto"
    threads: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole of the configuration file."""

    bundle: BundleSettings = msgspec.field(default_factory=BundleSettings)
    runtime: RuntimeSettings = msgspec.field(default_factory=RuntimeSettings)


def read_settings(path: Path) -> Settings:
    """Read a configuration file; an empty one is all defaults.

    Raises:
        InputError: it cannot be read, is not YAML, or holds an unknown key or an impossible value.
    """
    try:
        text = read_plain_file(path, MAX_BYTES, follow=True)
    except NotPlainError as error:
        raise InputError(f"{path} is {error}, not a configuration file") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    if len(text) > MAX_BYTES:
        raise InputError(f"{path} is longer than the {MAX_BYTES} bytes a configuration may have")
    try:
        stated = load_yaml(text)
        return msgspec.convert({} if stated is None else stated, Settings)
    except ValueError as error:  # msgspec's errors are among them
        raise InputError(f"{path}: {' '.join(str(error).split())}") from error
