"""The makers of pseudo anomalies that work on pixels, by `augment.kind`."""

from __future__ import annotations

from typing import Any

PIXEL_MAKERS: dict[str, Any] = {}
