"""A page as blocks, and the two forms it is written in: one HTML file, or Markdown with pictures beside it.

Whatever text a block holds is escaped here, once, in either form: blocks hold plain text.
"""

import base64
import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

STYLE = Path(__file__).with_name("page.css")
NOTHING = "—"

# Nothing but what the page itself holds can be loaded, whatever a run's files say.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class Heading:
    """A heading; level 2 begins a section that the list of contents names."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph; `kind` is `note` (small print) or `warning` (what must not be overlooked)."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Cell:
    """A figure or a name, and a second line in small print."""

    text: str = NOTHING
    note: str = ""
    best: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class Table:
    """Rows that begin with a name; `groups` are (title, n_columns) above the columns after the first."""

    caption: str
    columns: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]
    groups: Sequence[tuple[str, int]] = ()


@dataclass(frozen=True)
class Facts:
    """Names and values of one thing."""

    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Picture:
    """An SVG drawing; `name` is its file name without ending, unique on the page."""

    name: str
    alt: str
    svg: bytes


@dataclass(frozen=True)
class Gallery:
    """Pictures side by side, with what their lines mean above and how to read them below."""

    pictures: Sequence[Picture]
    caption: str = ""
    legend: Sequence[tuple[Picture, str]] = ()
    wide: bool = False


Block = Heading | Text | Table | Facts | Gallery


@dataclass(frozen=True)
class Page:
    """A title and what stands below it."""

    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)


# -- HTML -------------------------------------------------------------------------------------------------


def to_html(page: Page) -> str:
    """One file that needs no other and asks no host for anything."""
    title = html.escape(page.title)
    sections = [block.text for block in page.blocks if isinstance(block, Heading) and block.level == 2]
    contents = "".join(f'<a href="#{_anchor(text)}">{html.escape(text)}</a>' for text in sections)
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title>\n<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n</head>",
            f"<body>\n<main>\n<h1>{title}</h1>\n<nav>{contents}</nav>",
            *(_block_html(block) for block in page.blocks),
            "</main>\n</body>\n</html>\n",
        ]
    )


def _block_html(block: Block) -> str:
    match block:
        case Heading(text, 2):
            return f'<h2 id="{_anchor(text)}">{html.escape(text)}</h2>'
        case Heading(text, level):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Text(text, kind):
            return f'<p class="{html.escape(kind)}">{html.escape(text)}</p>'
        case Table():
            return _table_html(block)
        case Facts(pairs):
            rows = "".join(
                f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
                for name, value in pairs
            )
            return f"<dl>{rows}</dl>"
        case Gallery():
            return _gallery_html(block)


def _table_html(table: Table) -> str:
    groups = "".join(
        f'<th colspan="{span}" scope="colgroup">{html.escape(title)}</th>' for title, span in table.groups
    )
    head = f"<tr><td></td>{groups}</tr>" if groups else ""
    head += "<tr>" + "".join(_cell_html(cell, "th", "col") for cell in table.columns) + "</tr>"
    rows = "".join(
        f"<tr>{_cell_html(row[0], 'th', 'row')}{''.join(_cell_html(cell, 'td') for cell in row[1:])}</tr>\n"
        for row in table.rows
    )
    caption = html.escape(table.caption)
    return (
        f'<div class="scroll" tabindex="0"><table>\n<caption><span>{caption}</span></caption>\n'
        f"<thead>{head}</thead>\n<tbody>{rows}</tbody></table></div>"
    )


def _cell_html(cell: Cell, tag: str, scope: str = "") -> str:
    text = html.escape(cell.text)
    text = f"<b>{text}</b>" if cell.best else text
    note = f"<small>{html.escape(cell.note)}</small>" if cell.note else ""
    quiet = ' class="quiet"' if cell.quiet else ""
    scope = f' scope="{scope}"' if scope else ""
    return f"<{tag}{scope}{quiet}>{text}{note}</{tag}>"


def _gallery_html(gallery: Gallery) -> str:
    legend = "".join(f"<span>{_image_html(line)} {html.escape(name)}</span>" for line, name in gallery.legend)
    legend = f'<p class="legend">{legend}</p>' if legend else ""
    pictures = "".join(_image_html(picture) for picture in gallery.pictures)
    caption = f"<figcaption>{html.escape(gallery.caption)}</figcaption>" if gallery.caption else ""
    kind = "gallery wide" if gallery.wide else "gallery"
    return f'<figure>{legend}<div class="{kind}">{pictures}</div>{caption}</figure>'


def _image_html(picture: Picture) -> str:
    data = base64.b64encode(picture.svg).decode()
    return f'<img src="data:image/svg+xml;base64,{data}" alt="{html.escape(picture.alt)}">'


def _anchor(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


# -- Markdown ---------------------------------------------------------------------------------------------


def to_markdown(page: Page, folder: str) -> str:
    """The page as Markdown whose pictures are `folder/<name>.svg`, relative to it."""
    blocks = (_block_markdown(block, folder) for block in page.blocks)
    return "\n\n".join([f"# {_plain(page.title)}", *blocks]) + "\n"


def pictures(page: Page) -> Iterator[Picture]:
    """Every picture on the page."""
    for block in page.blocks:
        if isinstance(block, Gallery):
            yield from (line for line, _ in block.legend)
            yield from block.pictures


def _block_markdown(block: Block, folder: str) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_plain(text)}"
        case Text(text, kind):
            return f"> **Note.** {_plain(text)}" if kind == "warning" else _plain(text)
        case Table():
            return _table_markdown(block)
        case Facts(pairs):
            return "\n".join(f"- {_plain(name)}: {_plain(value)}" for name, value in pairs)
        case Gallery():
            return _gallery_markdown(block, folder)


def _table_markdown(table: Table) -> str:
    """Markdown knows no column groups: their titles go into the columns' names."""
    groups = ["", *(title for title, span in table.groups for _ in range(span))]
    groups += [""] * (len(table.columns) - len(groups))
    names = [
        " ".join(filter(None, (_plain(group), _cell_markdown(cell))))
        for group, cell in zip(groups, table.columns, strict=True)
    ]
    rows = [names, ["---", *["---:"] * (len(names) - 1)]]
    rows += [[_cell_markdown(cell) for cell in row] for row in table.rows]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{_plain(table.caption)}\n\n{lines}"


def _cell_markdown(cell: Cell) -> str:
    text = f"**{_plain(cell.text)}**" if cell.best else _plain(cell.text)
    return f"{text} ({_plain(cell.note)})" if cell.note else text


def _gallery_markdown(gallery: Gallery, folder: str) -> str:
    image = lambda picture: f"![{_plain(picture.alt)}]({quote(folder)}/{quote(picture.name)}.svg)"  # noqa: E731
    legend = " · ".join(f"{image(line)} {_plain(name)}" for line, name in gallery.legend)
    images = "\n".join(image(picture) for picture in gallery.pictures)
    return "\n\n".join(filter(None, (legend, images, _plain(gallery.caption))))


def _plain(text: str) -> str:
    """Text in which nothing is markup: neither HTML's nor Markdown's."""
    line = " ".join(html.escape(text, quote=False).split())
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", line)
