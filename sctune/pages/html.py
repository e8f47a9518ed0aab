"""Parts of a page, by Jinja2 from templates/: all text is escaped but what is made here."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined


class Html(str):
    """Text that is HTML already; all other text is escaped."""

    def __html__(self) -> str:
        """What templates ask for in place of escaping."""
        return str(self)


def joined(parts: Iterable[object]) -> Html:
    """All parts one after the other."""
    return rendered("joined.html", {"parts": parts})


def tag(name: str, *content: object, kind: str = "") -> Html:
    """An element; kind: its class."""
    return rendered("tag.html", {"name": name, "content": content, "kind": kind})


def table(head: Sequence[object], rows: Iterable[Sequence[object]], kind: str = "") -> Html:
    """A table that scrolls by itself where it is wider than the page; rows as long as the head."""
    shown = head if any(str(cell) for cell in head) else ()
    return rendered("table.html", {"head": shown, "rows": rows, "kind": kind})


def facts(rows: Iterable[tuple[object, object]]) -> Html:
    """Names and what they are."""
    return rendered("facts.html", {"rows": rows})


def missing(reason: object) -> Html:
    """In the place of something that could not be made."""
    return tag("p", "Not shown: ", reason, ".", kind="missing")


def picture(path: Path, caption: object, alt: str) -> Html:
    """A PNG inside the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    return rendered("picture.html", {"data": data, "caption": caption, "alt": alt})


def rendered(template: str, values: Mapping[str, object]) -> Html:
    """A file of templates/ with its values; raises jinja2.UndefinedError where it asks for one that is not there."""
    return Html(_templates().get_template(template).render(values))


@cache
def _templates() -> Environment:
    made = Environment(
        loader=PackageLoader("sctune.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # NaN is no JSON, and JSON.parse of a browser refuses it
    made.policies["json.dumps_kwargs"] = {"allow_nan": False}
    return made
