"""The two pages of the server, whole in themselves: dropping images, and what the server answers to."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from html import escape
from importlib.resources import files
from typing import Any

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
    style = next(content for name, content in _INLINE.findall(drop_page()) if name == "style")
    parts = []
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            parts.append(_operation(f"{method.upper()} {path}", operation))
    schemas = schema.get("components", {}).get("schemas", {})
    shapes = "".join(f"<h3>{escape(name)}</h3><pre>{_shown(shape)}</pre>" for name, shape in schemas.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>sctune: interface</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{style}</style></head><body><main><h1>Interface of this server</h1>"
        '<p>For programs: <a href="/openapi.json">/openapi.json</a> (OpenAPI). For people: '
        f'<a href="/">a page to drop images on</a>.</p>{"".join(parts)}<h2>Documents</h2>{shapes}</main></body></html>'
    )


def _operation(title: str, operation: Mapping[str, Any]) -> str:
    rows = [
        f"<tr><td>{escape(code)}</td><td>{escape(answer.get('description', ''))}</td></tr>"
        for code, answer in operation.get("responses", {}).items()
    ]
    asked = [
        f"<li><code>?{escape(each['name'])}=</code> {escape(str(each['schema'].get('type', '')))}</li>"
        for each in operation.get("parameters", [])
    ]
    bodies = [
        f"<li>body: <code>{escape(kind)}</code></li>" for kind in operation.get("requestBody", {}).get("content", {})
    ]
    return (
        f"<h2><code>{escape(title)}</code></h2><p>{escape(operation.get('summary', ''))}. "
        f"{escape(operation.get('description', ''))}</p><ul>{''.join([*asked, *bodies])}</ul>"
        f"<table><thead><tr><th>Status</th><th>Meaning</th></tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _shown(shape: Mapping[str, Any]) -> str:
    return escape(json.dumps(shape, indent=1))
