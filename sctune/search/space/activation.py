"""Which fields of a configuration mean nothing without another: no patch count without a patch head.

A space need not say so: such a parameter is drawn only where it has an effect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sctune.search.space.parameter import Parameter, When

_SALIENCY: When = (("augment.kind", ("saliencycut",)),)
_PATCHES: When = (("model.heads", ("two_head_patch",)),)
_REFERENCES: When = (("model.heads", ("two_head_latent", "four_head")),)

NEEDS: dict[str, When] = {
    **{
        f"augment.{name}": _SALIENCY
        for name in ("threshold", "threshold_mode", "grid_size", "kernel", "region", "on_flat", "paste_valid_only")
    },
    "augment.cutpaste": (("augment.kind", ("cutpaste",)),),
    "augment.refresh": (("augment.kind", ("saliencycut", "cutmix", "cutmix_pair", "cutpaste")),),
    "augment.allow_self": _SALIENCY,
    **{f"model.patch_{name}": _PATCHES for name in ("count", "place", "size", "per_sample", "evaluation")},
    **{f"model.reference_{name}": _REFERENCES for name in ("count", "source")},
    # batches have normal slots only where no anomaly is seen
    "data.balance": (("data.setting", ("general", "hard")),),
    "model.tap": (("model.taps", (None,)),),
    "model.pyramid_interpolation": (("model.n_scales", (2,)),),
    "score.full_scale": (("model.n_scales", (2,)),),
    # DevNet has one head, which nothing is weighed against
    "score.normal": (("model.heads", ("two_head_patch", "two_head_latent", "four_head")),),
    **{f"score.{name}": (("model.heads", ("four_head",)),) for name in ("seen", "pseudo")},
}
"""Field -> conditions under which it matters."""


def with_needs(parameters: Sequence[Parameter], taken: Mapping[str, Sequence[Any]]) -> tuple[Parameter, ...]:
    """The parameters with what their fields need; where that looks at a later one, they go behind it.

    taken: field -> all values that it takes in the space, the base's too where its parameter may be inactive. A need
    that always holds is left out, and so is one on a field that the parameter's own `when:` looks at.
    """
    names = {parameter.name for parameter in parameters}
    placed: list[Parameter] = []
    waiting: list[Parameter] = []
    for parameter in parameters:
        needs = _needed(parameter, taken)
        waiting.append(replace(parameter, needs=needs) if needs else parameter)
        while ready := next((one for one in waiting if not _waits(one, names, placed, waiting)), None):
            placed.append(ready)
            waiting.remove(ready)
    return (*placed, *waiting)


def _waits(parameter: Parameter, names: set[str], placed: Sequence[Parameter], waiting: Sequence[Parameter]) -> bool:
    before, held = {one.name for one in placed}, {one.name for one in waiting}
    # a condition of its own on one that is held back holds it back too; on a later one it stays a mistake of the file
    return any(other in names - before for other, _ in parameter.needs) or any(
        other in held for other, _ in parameter.when
    )


def _needed(parameter: Parameter, taken: Mapping[str, Sequence[Any]]) -> When:
    own = {other for other, _ in parameter.when}
    more = []
    for other, wanted in NEEDS.get(parameter.name, ()):
        if other in own or set(taken[other]) <= set(wanted):
            continue
        # a need names only what is taken; where that is nothing, the parameter is never active
        more.append((other, tuple(value for value in wanted if value in taken[other]) or wanted))
    return tuple(more)
