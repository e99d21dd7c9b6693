"""A recording as one page: its picture, which follows a cursor, and its sounds; without the audio.

The page says by hashes which script and style it runs, and that it loads nothing. Whatever a name holds is
text. A spectrogram's value is a byte, half a decibel each.
"""

import base64
import hashlib
import html
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any, BinaryIO

import msgspec
import numpy as np

from edgetag.contract.errors import printable
from edgetag.contract.taxonomy import Tag
from edgetag.delivery.table import UNTAGGED
from edgetag.picture.portrait import Portrait, Sound, time_words
from edgetag.picture.spectrogram import FLOOR_DB, Spectrogram

STEPS_PER_DB = 2
TICKS_HZ = (100, 500, 1000, 2000, 4000, 8000, 16_000)
_MARK = re.compile(r"\{\{(\w+)\}\}")


def write(portrait: Portrait, file: BinaryIO, _format: str = "html") -> None:
    """Write a recording's page, UTF-8.

    Args:
        portrait: with at least one window.
        file: where to.
    """
    style, script = _part("page.css"), _part("page.js")
    values = {
        "policy": _policy(script, style),
        "style": style,
        "script": script,
        "data": _as_json(page_data(portrait)),
        **{mark: html.escape(text) for mark, text in _words(portrait).items()},
        "coarse": _names(portrait.model.taxonomy.categories),
        "fine": _names(portrait.fine_tags) or "<span>no kind told apart</span>",
        "untagged": _untagged(portrait),
        "sounds": _sounds(portrait),
        "about": _about(portrait),
    }
    page = _MARK.sub(lambda mark: values[mark[1]], _part("page.html"))  # once: no value is looked at
    file.write(page.encode("utf-8", "replace"))


# -- what the script knows -----------------------------------------------------------------------------------


def page_data(portrait: Portrait) -> dict[str, Any]:
    """What the page's script is told: plain numbers and texts."""
    taxonomy, end_s = portrait.model.taxonomy, portrait.duration_s
    return {
        "duration": round(end_s, 3),
        "start": portrait.start_utc_s,
        "unit": portrait.level_unit,
        "ids": taxonomy.ids,
        "names": [taxonomy.tags[id].name for id in taxonomy.ids],
        "coarse": taxonomy.coarse_ids,
        "fine": [tag.id for tag in portrait.fine_tags],
        "untagged": UNTAGGED,
        "spectrogram": _spectrogram(portrait.spectrogram),
        "windows": [
            [
                window.start_s,
                window.end_s,
                round(start_s, 3),
                round(end_s, 3),
                window.verdict,
                window.laeq_db,
                window.lafmax_db,
                window.la90_db,
                int(100 * window.valid),
                _percentages(window.probability, taxonomy.ids),
                sorted(window.refined),
                sorted(window.active),
            ]
            for window, (start_s, end_s) in zip(portrait.windows, portrait.cells, strict=True)
        ],
    }


def _percentages(probability: Mapping[str, float], ids: Iterable[str]) -> list[int | None]:
    if not probability:
        return []
    return [round(100 * probability[id]) if id in probability else None for id in ids]


def _spectrogram(spectrogram: Spectrogram) -> dict[str, Any]:
    db = spectrogram.db
    steps = np.clip(np.round((db - FLOOR_DB) * STEPS_PER_DB) + 1, 1, 255)
    codes = np.where(np.isfinite(db), steps, 0).astype(np.uint8)
    n_bands, n_columns = db.shape
    places = [(spectrogram.band_of(hz), hz) for hz in TICKS_HZ]
    return {
        "bands": n_bands,
        "columns": n_columns,
        "column_s": spectrogram.column_s,
        "range": spectrogram.range_db(),
        "ticks": [
            [round(place, 2), f"{hz // 1000} kHz" if hz >= 1000 else f"{hz} Hz"]
            for place, hz in places
            if 0 <= place <= n_bands - 1
        ],
        "codes": base64.b64encode(codes.tobytes()).decode(),
    }


def _as_json(data: dict[str, Any]) -> str:
    """For a script element: nothing in it can end that."""
    return msgspec.json.encode(data).decode().replace("<", "\\u003c")


# -- what is read without a script ---------------------------------------------------------------------------


def _words(portrait: Portrait) -> dict[str, str]:
    info = portrait.model.info
    began = "" if portrait.start_utc_s is None else f", from {_utc(portrait, 0.0)} UTC"
    whole = "" if portrait.is_whole else ", not heard to its end"
    return {
        "name": portrait.name,
        "version": info.edgetag,
        "facts": f"{time_words(portrait.duration_s)}{began}{whole}, tagged by {portrait.model.manifest.name}",
        "duration": f"{portrait.duration_s:.1f}",
        "play_key": "; the space bar plays a chosen recording",
        "n_coarse": str(len(portrait.model.taxonomy.categories)),
        "n_fine": str(len(portrait.fine_tags)),
    }


def _names(tags: Iterable[Tag]) -> str:
    return "".join(f'<span title="{html.escape(tag.name)}">{html.escape(tag.name)}</span>' for tag in tags)


def _untagged(portrait: Portrait) -> str:
    """What the patterns mean that there are."""
    found = {window.verdict for window in portrait.windows}
    marks = [(str(kind), f"not tagged: {words}") for kind, words in UNTAGGED.items() if kind in found]
    if not np.isfinite(portrait.spectrogram.db).all():
        marks.append(("lost", "no audio"))
    return "".join(f'<li><span class="swatch {kind}"></span> {words}</li>' for kind, words in marks)


def _sounds(portrait: Portrait) -> str:
    sounds = [sound for sound in portrait.sounds if not _says_nothing_new(portrait, sound)]
    if not sounds:
        return "<p>No tag reached its threshold.</p>"
    head = "".join(
        f"<th scope=col>{words}</th>" for words in ("sound", "begins", "ends", "lasts", "at most", "at")
    )
    rows = "".join(_row(portrait, sound) for sound in sounds)
    more = f"<p>and {portrait.n_more_sounds:,} more</p>" if portrait.n_more_sounds else ""
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Sounds">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{more}"
    )


def _says_nothing_new(portrait: Portrait, sound: Sound) -> bool:
    """Whether it is of a category's only kind, and the category's own sound is there as well."""
    coarse_id, dash, _ = sound.tag.partition("-")
    return bool(dash) and portrait.model.taxonomy.category(coarse_id).single is not None


def _row(portrait: Portrait, sound: Sound) -> str:
    cells = (
        f"<td>{html.escape(printable(sound.name))}</td>",
        f"<td>{_button(portrait, sound.start_s)}</td>",
        f"<td>{_button(portrait, sound.end_s)}</td>",
        f'<td class="number">{sound.end_s - sound.start_s:.1f} s</td>',
        f'<td class="number">{sound.peak:.0%}</td>',
        f"<td>{_button(portrait, sound.peak_s)}</td>",
    )
    return f'<tr data-from="{sound.start_s}" data-to="{sound.end_s}">{"".join(cells)}</tr>'


def _button(portrait: Portrait, at_s: float) -> str:
    """A place in the recording to go to, in UTC if it is known when it began."""
    words = time_words(at_s) if portrait.start_utc_s is None else _utc(portrait, at_s)[11:]
    return f'<button type="button" data-at="{at_s}">{words}</button>'


def _utc(portrait: Portrait, at_s: float) -> str:
    began_s = portrait.start_utc_s or 0.0
    return f"{datetime.fromtimestamp(began_s + at_s, UTC):%Y-%m-%d %H:%M:%S}"


def _about(portrait: Portrait) -> str:
    info, manifest = portrait.model.info, portrait.model.manifest
    merged = f", {portrait.n_each} drawn as one" if portrait.n_each > 1 else ""
    facts = {
        "recording": f"{portrait.name}, {time_words(portrait.duration_s)}, {portrait.rate_hz:,} Hz",
        "windows": f"of {info.window_s:g} s, every {info.hop_s:g} s{merged}, each drawn where it is nearest",
        "level": f"{portrait.level_unit}; the spectrogram's decibels are relative to a mean square of 1",
        "bundle": f"{manifest.name} {manifest.version}, {info.variant}, sha256 {info.bundle_sha256}",
        **({"then": ", ".join(portrait.others)} if portrait.others else {}),
        "summary": manifest.summary,
        "licence": manifest.licence,
        "taxonomy": info.taxonomy,
        "edgetag": info.edgetag,
    }
    return "".join(f"<dt>{term}</dt><dd>{html.escape(printable(fact))}</dd>" for term, fact in facts.items())


# -- the page's parts ----------------------------------------------------------------------------------------


def _part(name: str) -> str:
    return (files("edgetag.picture") / name).read_text("utf-8")


def _policy(script: str, style: str) -> str:
    """That page may run this script and this style, play what its reader chooses, and nothing else."""
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'"
        for part in (script, style)
    ]
    return (
        f"default-src 'none'; script-src {hashes[0]}; style-src {hashes[1]}; media-src blob:; "
        "base-uri 'none'; form-action 'none'"
    )
