"""`taxonomy.yaml`: a city's own tags, beside its annotations, in the shape of SONYC-UST's published file.

```yaml
name: harbour
coarse: {1: ship, 2: gull}
fine:
  1: {1: horn, 2: engine, X: other-ship}
  2: {1: gull}
```
Where a dataset has no such file, its tags are SONYC-UST's.
"""

import os
from pathlib import Path
from typing import Any

import msgspec

from edgetag.contract.errors import InputError
from edgetag.contract.strict_yaml import dump_yaml, load_yaml
from edgetag.contract.taxonomy import SONYC_UST, Taxonomy
from edgetag_train.data.store import sha256

FILE = "taxonomy.yaml"
_KEYS = ("name", "coarse", "fine")


def taxonomy_beside(table: Path) -> Taxonomy:
    """The taxonomy that lies beside an annotation table; SONYC-UST where none does.

    Raises:
        InputError: there is one, but it cannot be read, or is none.
    """
    path = table.with_name(FILE)
    return read_taxonomy(path) if os.path.lexists(path) else SONYC_UST


def read_taxonomy(path: Path) -> Taxonomy:
    """
    Raises:
        InputError: the file cannot be read, or does not state a taxonomy.
    """
    try:
        return _taxonomy(load_yaml(path.read_bytes()))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def taxonomy_yaml(taxonomy: Taxonomy) -> bytes:
    """What `read_taxonomy` reads as the same taxonomy."""
    fine = {
        category.id: {tag.id.removeprefix(f"{category.id}-"): tag.name for tag in category.fine}
        for category in taxonomy.categories
    }
    coarse = {category.id: category.name for category in taxonomy.categories}
    return dump_yaml({"name": taxonomy.name, "coarse": coarse, "fine": fine})


def identity(taxonomy: Taxonomy) -> dict[str, str]:
    """How runs and caches remember a taxonomy: its name, and a hash of its tags."""
    return {"name": taxonomy.name, "sha256": sha256(msgspec.to_builtins(taxonomy.categories))}


def described(taxonomy: Taxonomy) -> str:
    """For a sentence that says how two differ: names may be the same."""
    stated = identity(taxonomy)
    return f"{stated['name']} ({len(taxonomy.ids)} tags, sha256 {stated['sha256'][:12]}…)"


def _taxonomy(stated: Any) -> Taxonomy:  # noqa: ANN401  whatever YAML holds
    if not isinstance(stated, dict) or stated.keys() != set(_KEYS):
        found = ", ".join(map(str, stated)) if isinstance(stated, dict) else type(stated).__name__
        raise ValueError(f"the keys {', '.join(_KEYS)} are expected, found {found or 'none'}")
    if not isinstance(stated["name"], str):
        raise ValueError(f"name is text, found {stated['name']!r}; put it in quotes")
    coarse = _names(stated["coarse"], "coarse")
    below = _keyed(stated["fine"], "fine")
    if missing := [id for id in coarse if id not in below]:
        raise ValueError(
            f"category {missing[0]} has no fine tags; a single kind is one, {{1: {coarse[missing[0]]}}}"
        )
    if unknown := [id for id in below if id not in coarse]:
        raise ValueError(f"fine.{unknown[0]} belongs to no category; coarse has {', '.join(coarse)}")
    fine = {id: _names(below[id], f"fine.{id}") for id in coarse}
    return Taxonomy.from_names(stated["name"], coarse, fine)


def _names(stated: Any, where: str) -> dict[str, str]:  # noqa: ANN401
    names = _keyed(stated, where)
    for id, name in names.items():
        if not isinstance(name, str):
            raise ValueError(
                f"{where}.{id} is text, found {name!r}; a name that looks otherwise is put in quotes"
            )
    return names


def _keyed(stated: Any, where: str) -> dict[str, Any]:  # noqa: ANN401
    """A map by id; to YAML an id in digits is a number."""
    if not isinstance(stated, dict):
        raise ValueError(f"{where} is a map of ids, found {stated!r}")
    keyed: dict[str, Any] = {}
    for key, value in stated.items():
        if type(key) not in (int, str):
            raise ValueError(
                f"{where} has the id {key!r}; an id is a whole number or text, in quotes if need be"
            )
        if str(key) in keyed:
            raise ValueError(f"{where} has the id {key} twice, as a number and as text")
        keyed[str(key)] = value
    return keyed
