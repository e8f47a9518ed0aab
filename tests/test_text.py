"""Parameters as people read them."""

from __future__ import annotations

from sctune.text import short, without_sections


def test_a_name_is_shortened_where_no_other_ends_alike() -> None:
    assert without_sections(["variant", "method.variant", "optim.lr", "seed"]) == {
        "variant": "variant",
        "method.variant": "method.variant",
        "optim.lr": "lr",
        "seed": "seed",
    }
    point = {"variant": "cutpaste", "method.variant": "3way", "optim.lr": 0.00123456}
    assert short(point) == "variant=cutpaste, method.variant=3way, lr=0.001235"
