"""HTML by hand: everything is escaped but what was made here."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path


class Html(str):
    """Text that is HTML already; all other text is escaped."""


def safe(value: object) -> Html:
    """A value as HTML."""
    return value if isinstance(value, Html) else Html(html.escape(str(value), quote=True))


def joined(parts: Iterable[object]) -> Html:
    """All parts one after the other."""
    return Html("\n".join(safe(part) for part in parts))


def tag(name: str, *content: object, kind: str = "") -> Html:
    """An element; kind: its class."""
    attribute = f' class="{safe(kind)}"' if kind else ""
    return Html(f"<{name}{attribute}>{''.join(safe(part) for part in content)}</{name}>")


def table(head: Sequence[object], rows: Iterable[Sequence[object]], kind: str = "") -> Html:
    """A table that scrolls by itself where it is wider than the page; rows as long as the head."""
    top = "".join(tag("th", cell) for cell in head)
    body = "".join(tag("tr", *(tag("td", cell) for cell in row)) for row in rows)
    first = tag("thead", tag("tr", Html(top))) if any(str(cell) for cell in head) else Html("")
    return tag("div", tag("table", first, tag("tbody", Html(body)), kind=kind), kind="wide")


def facts(rows: Iterable[tuple[object, object]]) -> Html:
    """Names and what they are."""
    return tag("dl", *(Html(tag("dt", name) + tag("dd", value)) for name, value in rows))


def section(anchor: str, title: str, *content: object) -> Html:
    """A part of the page with a heading; anchor: its id, plain letters."""
    return Html(f'<section id="{safe(anchor)}"><h2>{safe(title)}</h2>{joined(content)}</section>')


def missing(reason: object) -> Html:
    """In the place of something that could not be made."""
    return tag("p", "Not shown: ", reason, ".", kind="missing")


def picture(path: Path, caption: object, alt: str) -> Html:
    """A PNG inside the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    image = Html(f'<img src="data:image/png;base64,{data}" alt="{safe(alt)}">')
    return tag("figure", image, tag("figcaption", caption))


def script_json(text: str) -> Html:
    """JSON inside a script element, which nothing in it can end."""
    return Html(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))
