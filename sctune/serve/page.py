"""The two pages of the server, whole in themselves: dropping images, and what the server answers to."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


@cache
def drop_page() -> str:
    """A page to drop images on; it asks this server only, and loads nothing."""
    return (files("sctune.serve") / "page.html").read_text(encoding="utf-8")


def _hashes(kind: str) -> str:
    found = [content for name, content in _INLINE.findall(drop_page()) if name == kind]
    return " ".join(f"'sha256-{base64.b64encode(sha256(text.encode()).digest()).decode()}'" for text in found)


SECURITY = {
    "Content-Security-Policy": f"default-src 'none'; script-src {_hashes('script')}; style-src {_hashes('style')}; "
    "img-src blob: data:; connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
"""Headers of both pages: they run and load nothing but what is in them."""


def docs_page(schema: Mapping[str, Any]) -> str:
    """What the server answers to, from its OpenAPI document (/openapi.json), as a page without scripts."""
    # the very text of the other page, since its hash is what the headers allow
    style = next(content for name, content in _INLINE.findall(drop_page()) if name == "style")
    templates = Environment(loader=PackageLoader("sctune.serve", ""), autoescape=True, undefined=StrictUndefined)
    # shown to people, and nothing but the text of an element
    templates.filters["indented"] = lambda shape: json.dumps(shape, indent=1)
    return templates.get_template("docs.html").render(
        style=style, paths=schema["paths"], schemas=schema.get("components", {}).get("schemas", {})
    )
