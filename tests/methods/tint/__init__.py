"""A method in a package of its own: how far the mean colour of an image lies from that of the normal ones.

It stands for what others may ship. `docs/extending.md` tells about it; the tests install it beside sctune.
"""

from __future__ import annotations

from pydantic import Field

from sctune.methods.registry import MethodEntry, MethodSection


class TintSection(MethodSection):
    name: str = "tint"
    power: float = Field(2.0, ge=1, le=4, description="of the distance in each colour")


ENTRY = MethodEntry(
    name="tint",
    description="distance of the mean colour to that of the normal images",
    section=TintSection,
    implementation="tint.method:TintMethod",
    hyperparameters={"method.power": {"values": [1.0, 2.0]}},
    published={"tint": {"config": {"method": {"name": "tint"}}}},
)
