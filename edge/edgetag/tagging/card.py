"""A bundle's card, for people and as JSON. What a manifest says is shown, and never obeyed: neither markup
nor control characters reach the terminal."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from edgetag.contract.errors import printable
from edgetag.contract.manifest import Manifest, Parity, Variant, model_id

SHOWN_CHARACTERS = 400
"""A list longer than this is cut short on the card; the JSON has all of it."""
_DIGITS = 12  # of a hash


@dataclass(frozen=True)
class Card:
    """What is known of a bundle without running it.

    Attributes:
        manifest: what it states.
        sha256: of `bundle.yaml`.
        signature: `none`, `not checked`, or `valid for KEY`.
    """

    manifest: Manifest
    sha256: str
    signature: str

    @property
    def model(self) -> str:
        """As events name it."""
        return model_id(self.manifest.name, self.sha256)

    def json(self) -> str:
        """Everything the manifest states, with `model`, `sha256` and `signature`; ASCII, indented."""
        known = {"model": self.model, "sha256": self.sha256, "signature": self.signature}
        text = msgspec.json.encode(known | _plain(msgspec.to_builtins(self.manifest))).decode()
        ascii_text = re.sub(r"[^\x00-\x7e]", lambda match: _escaped(match[0]), text)
        return msgspec.json.format(ascii_text, indent=2)

    def __rich__(self) -> RenderableType:
        manifest, names = self.manifest, {id: tag.name for id, tag in self.manifest.taxonomy.tags.items()}
        title = _text(f"{manifest.name} {manifest.version}", "bold")
        head = Text.assemble(title, "  ", _text(self.model, "dim"))
        parts: list[RenderableType] = [
            head,
            _text(manifest.summary),
            *_section(f"Hears ({manifest.taxonomy.name})", _hears(manifest)),
        ]
        parts += _section("How well", _stated(manifest.metrics, names))
        if manifest.parity is not None:
            parts += _section("What eight bits cost", _rows(_parity(manifest.parity, names)))
        parts += _section("Trained on", _stated(manifest.training, names))
        parts += _section("Nets", _nets(manifest))
        parts += _section("Besides", _rows(_besides(self)))
        return Group(*parts)


def _hears(manifest: Manifest) -> Table:
    table, fine_ids = _grid(no_wrap=3), manifest.fine_ids
    for category in manifest.taxonomy.categories:
        net = "branch" if category.id in manifest.branches else "root"
        fine = ", ".join(tag.name for tag in category.fine)
        told = fine if category.fine[0].id in fine_ids else "not told apart"
        table.add_row(_text(category.id, "dim"), _text(category.name), _text(net, "dim"), _text(told))
    return table


def _nets(manifest: Manifest) -> Table:
    table = _grid(no_wrap=5)
    outputs = manifest.outputs
    totals: dict[Variant, int] = {}
    for name, variants in manifest.nets.items():
        for variant, file in variants.items():
            totals[variant] = totals.get(variant, 0) + file.size
            table.add_row(
                _text(name),
                _text(f"{outputs[name]} tags" if name in outputs else "10×128", "dim"),
                _text(variant),
                Text(_megabytes(file.size), justify="right"),
                _text(f"sha256 {file.sha256[:_DIGITS]}", "dim"),
            )
    for variant, size in totals.items() if len(manifest.nets) > 1 else ():
        table.add_row("together", "", _text(variant), Text(_megabytes(size), justify="right"), "")
    return table


def _besides(card: Card) -> Iterator[tuple[str, str]]:
    manifest = card.manifest
    if manifest.embedding is not None:
        yield "embedding", f"{manifest.embedding.kind}, {manifest.fusion}"
    rule = manifest.cascade
    also = ", and the likeliest category's always" if rule.policy == "threshold_or_max" else ""
    if manifest.branches:
        yield "cascade", f"a branch is asked where its category is above {rule.threshold:g}{also}"
    yield "thresholds", _thresholds(manifest)
    tolerances = ", ".join(f"{variant} {value:g}" for variant, value in manifest.golden.tolerance.items())
    yield "golden windows", f"may differ by {tolerances}"
    yield "licence", manifest.licence
    yield "created", manifest.created
    yield "signature", card.signature


def _thresholds(manifest: Manifest) -> str:
    tags_at: dict[float, list[str]] = {}
    for id, threshold in manifest.all_thresholds.items():
        tags_at.setdefault(threshold, []).append(manifest.taxonomy.tags[id].name)
    usual = max(tags_at, key=lambda threshold: len(tags_at[threshold]))
    others = (f"{value:g} for {', '.join(tags)}" for value, tags in sorted(tags_at.items()) if value != usual)
    return f"{usual:g} for every tag" if len(tags_at) == 1 else f"{usual:g}, but {'; '.join(others)}"


def _parity(parity: Parity, names: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for level, found in parity.levels.items():
        scores = " · ".join(f"{variant} {score:g}" for variant, score in found.micro_auprc.items())
        yield (
            f"{level} micro AUPRC",
            f"{scores}, on {found.windows} windows of {found.judged_on}; probabilities differ by "
            f"{found.mean_difference:g} on average, by {found.max_difference:g} at most",
        )
        yield f"{level} by class", _told(found.class_auprc, names)
    yield "golden windows", f"differ by {parity.golden_difference:g} at most"
    if left := {name: layers for name, layers in parity.float_layers.items() if layers}:
        yield "layers left in float", _told(left, names)
    yield "ranges taken from", f"{parity.calibration_windows} windows"
    if parity.exceeded:
        yield "limits exceeded", "; ".join(parity.exceeded)


def _stated(stated: Mapping[str, Any], names: Mapping[str, str]) -> RenderableType:
    return _rows(_unfolded(stated, names)) if stated else _text("not stated")


def _unfolded(stated: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """What people wrote for people: a row a key, and another for each list or map below it."""
    for key, value in stated.items():
        if not isinstance(value, dict) or value.keys() <= names.keys():
            yield key, _told(value, names)
            continue
        if folded := {k: v for k, v in value.items() if not isinstance(v, (dict, list))}:
            yield key, _told(folded, names)
        yield from ((f"{key}: {k}", _told(v, names)) for k, v in value.items() if k not in folded)


def _told(value: Any, names: Mapping[str, str]) -> str:  # noqa: ANN401
    """A value on one line; a key that is a tag's id becomes the tag's name."""
    match value:
        case dict():
            is_by_tag = all(key in names for key in value)
            items = ((names[key] if is_by_tag else _label(key), item) for key, item in value.items())
            return _short(" · ".join(f"{key} {_nested(item, names)}" for key, item in items))
        case list():
            is_of_tags = all(isinstance(item, str) and item in names for item in value)
            return _short(", ".join(names[item] if is_of_tags else _nested(item, names) for item in value))
        case None:
            return "none"
        case float():
            return f"{value:g}"
        case _:
            return str(value)


def _nested(value: Any, names: Mapping[str, str]) -> str:  # noqa: ANN401
    told = _told(value, names)
    return f"({told})" if isinstance(value, (dict, list)) else told


def _short(text: str) -> str:
    if len(text) <= SHOWN_CHARACTERS:
        return text
    return f"{text[:SHOWN_CHARACTERS].rpartition(' ')[0]} … (--json has all of it)"


def _label(key: object) -> str:
    words = str(key).split("_")
    return " ".join(word.upper() if word in ("auprc", "f1") else word for word in words)


def _section(title: str, body: RenderableType) -> list[RenderableType]:
    return [Text(), Text(title, "bold"), Padding(body, (0, 0, 0, 2))]


def _rows(rows: Iterator[tuple[str, str]]) -> Table:
    table = _grid(no_wrap=0)
    for key, value in rows:
        table.add_row(_text(_label(key), "dim"), _text(value))
    return table


def _grid(no_wrap: int) -> Table:
    """Columns as wide as they need, the first `no_wrap` of them unbroken."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(no_wrap):
        table.add_column(no_wrap=True)
    return table


def _text(text: str, style: str = "") -> Text:
    return Text(printable(" ".join(text.split())), style)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 10**5 else f"{size / 1e3:.1f} kB"


def _plain(value: Any) -> Any:  # noqa: ANN401
    """With keys as JSON has them."""
    match value:
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case list():
            return [_plain(item) for item in value]
        case _:
            return value


def _escaped(character: str) -> str:
    """As JSON may write any character; beyond 16 bits as two surrogates."""
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[k]:02x}{units[k + 1]:02x}" for k in range(0, len(units), 2))
