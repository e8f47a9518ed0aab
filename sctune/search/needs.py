"""Which fields of a configuration mean nothing without another: no patch count without a patch head.

A space need not say so: such a parameter is drawn only where it has an effect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sctune.search.parameter import Parameter, When

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
    "augment.allow_self": (("augment.kind", ("saliencycut", "cutmix_pair")),),
    **{f"model.patch_{name}": _PATCHES for name in ("count", "place", "size", "per_sample", "evaluation")},
    **{f"model.reference_{name}": _REFERENCES for name in ("count", "source")},
    "model.pyramid_interpolation": (("model.n_scales", (2,)),),
}
"""Field -> conditions under which it matters."""


def with_needs(parameters: Sequence[Parameter], taken: Mapping[str, Sequence[Any]]) -> tuple[Parameter, ...]:
    """The parameters with the conditions that their fields need; where those look at a later one, they go behind it.

    taken: field -> all values that it takes in the space. A condition that always holds is left out, and so is one
    on a field that the parameter's own `when:` looks at.
    """
    names = {parameter.name for parameter in parameters}
    placed: list[Parameter] = []
    waiting: list[Parameter] = []
    for parameter in parameters:
        more = _needed(parameter, taken)
        complete = replace(parameter, when=(*parameter.when, *more)) if more else parameter
        before = {one.name for one in placed}
        if any(other in names and other not in before for other, _ in more):
            waiting.append(complete)
            continue
        placed.append(complete)
        ready = [one for one in waiting if any(other == parameter.name for other, _ in one.when)]
        placed += ready
        waiting = [one for one in waiting if one not in ready]
    return (*placed, *waiting)


def _needed(parameter: Parameter, taken: Mapping[str, Sequence[Any]]) -> When:
    own = {other for other, _ in parameter.when}
    more = []
    for other, wanted in NEEDS.get(parameter.name, ()):
        if other in own or set(taken[other]) <= set(wanted):
            continue
        # a condition may name only what is drawn; where that is nothing, the parameter is never active
        more.append((other, tuple(value for value in wanted if value in taken[other]) or wanted))
    return tuple(more)
