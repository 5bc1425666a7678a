"""The page itself: one HTML file that needs no other, and in which all text is escaped."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rotescale.analysis.report.estimates import Estimate

_FOLDER = Path(__file__).parent
_FEW_ROWS = 14
"""As many are seen at once."""


class Html(str):
    """Text that is HTML already; every other text is escaped."""


@dataclass(frozen=True, slots=True)
class Number:
    """A cell that sorts as a number; None sorts last."""

    value: float | None
    text: str
    interval: str = ""


Content = str | int | Number | Html | None
"""What a cell holds; None: nothing was measured."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawn figure, and what it shows for those who do not see it."""

    name: str
    """Of its files, without the suffix."""
    title: str
    alt: str
    size: tuple[int, int]
    """In CSS pixels."""
    files: Mapping[str, bytes]
    """Name of each file, light and dark, PNG and SVG."""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page."""

    identifier: str
    title: str
    scope: str
    """In a sentence: what is shown, of how many facts and seeds, and what was not measured."""
    parts: tuple[Html, ...]
    pictures: tuple[Picture, ...] = ()


def escaped(text: str | Html) -> Html:
    """The text as HTML."""
    return text if isinstance(text, Html) else Html(html.escape(text, quote=True))


def element(name: str, content: str | Html | Iterable[Html], **attributes: str) -> Html:
    """An element; ``class_`` and the like lose their underscore, others become dashes."""
    told = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(value, quote=True)}"'
        for key, value in attributes.items()
    )
    inner = escaped(content) if isinstance(content, str) else "".join(content)
    return Html(f"<{name}{told}>{inner}</{name}>")


def paragraph(text: str, **attributes: str) -> Html:
    """A paragraph."""
    return element("p", text, **attributes)


def number(found: Estimate | None, *, signed: bool = False, decimals: int = 2) -> Number | None:
    """An estimate with its interval, as a cell."""
    if found is None:
        return None
    form = f"{'+' if signed else ''}.{decimals}f"
    interval = ""
    if found.low is not None and found.high is not None:
        interval = f"[{found.low:{form}} {found.high:{form}}]"
    return Number(found.value, f"{found.value:{form}}", interval)


def table(
    caption: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[Content]],
    *,
    quoted: Iterable[int] = (),
) -> Html:
    """A table that a click on a heading sorts, in a box of its own that scrolls.

    ``quoted`` are the rows that are someone else's.
    """
    numeric = [
        any(isinstance(row[place], Number | int) for row in rows) for place in range(len(headings))
    ]
    head = element("tr", (_heading(*pair) for pair in zip(headings, numeric, strict=True)))
    marked = set(quoted)
    body = (
        element(
            "tr",
            (_cell(*pair) for pair in zip(row, numeric, strict=True)),
            **({"class_": "quoted"} if place in marked else {}),
        )
        for place, row in enumerate(rows)
    )
    whole = (element("thead", (head,)), element("tbody", body))
    # The caption stays where it is while its box scrolls; the box can be reached with the keyboard.
    told = caption if len(rows) <= _FEW_ROWS else f"{caption}; {len(rows)} rows"
    name = {"role": "group", "aria_label": caption}
    box = element("div", (element("table", whole),), class_="box", tabindex="0", **name)
    return Html(paragraph(told, class_="caption") + box)


def _heading(text: str, is_number: bool) -> Html:
    button = element("button", text, type="button")
    return element("th", (button,), scope="col", **({"class_": "number"} if is_number else {}))


def _cell(content: Content, is_number: bool) -> Html:
    attributes = {"class_": "number"} if is_number else {}
    match content:
        case None:
            return element("td", "–", data_sort="", **attributes)
        case int():
            return element("td", f"{content:,}", data_sort=str(content), **attributes)
        case Number():
            interval = element("span", content.interval, class_="interval")
            parts = (escaped(content.text), *((interval,) if content.interval else ()))
            key = "" if content.value is None else repr(content.value)
            return element("td", parts, data_sort=key, **attributes)
        case _:
            return element("td", content, **attributes)


def definitions(pairs: Iterable[tuple[str, str | Html]]) -> Html:
    """Names and what they stand for."""
    return element("dl", (part for k, v in pairs for part in (element("dt", k), element("dd", v))))


def figure(picture: Picture) -> Html:
    """The picture in the colours that the reader prefers."""
    light, dark = (_data_uri(picture.files[f"{picture.name}{look}.svg"]) for look in ("", "-dark"))
    width, height = picture.size
    alt = html.escape(picture.alt, quote=True)
    return element(
        "figure",
        (
            element("figcaption", picture.title),
            Html(
                f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
                f'<img src="{light}" alt="{alt}" width="{width}" height="{height}"></picture>'
            ),
        ),
    )


def _data_uri(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii")


def page(title: str, opening: Sequence[Html], sections: Sequence[Section]) -> bytes:
    """The whole file. Nothing but what it brings itself may be run or loaded by it."""
    style, script = (
        (_FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", "page.js")
    )
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}"
    )
    links = (
        element("li", (element("a", section.title, href=f"#{section.identifier}"),))
        for section in sections
    )
    menu = element("nav", (element("ul", links),), aria_label="Sections")
    main = element("main", (*opening, menu, *(_section(section) for section in sections)))
    return (
        "<!DOCTYPE html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{html.escape(title)}</title>'
        f"<style>{style}</style></head>\n"
        f"<body>{main}\n<script>{script}</script></body></html>\n"
    ).encode()


def _section(section: Section) -> Html:
    figures = element("div", (figure(one) for one in section.pictures), class_="figures")
    name = f"{section.identifier}-title"
    return element(
        "section",
        (
            element("h2", section.title, id=name),
            paragraph(section.scope, class_="scope"),
            *((figures,) if section.pictures else ()),
            *section.parts,
        ),
        id=section.identifier,
        aria_labelledby=name,
    )


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"
