"""`--prior`: what is believed of a space before the search, read where it stands and put into the manifest whole."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sctune.config import FIELD_NAMES, TrialConfig, is_field, load_profile, method_entry, read_yaml
from sctune.errors import ConfigError, nearest
from sctune.methods.named import method_values
from sctune.search.plan.earlier import prior_of_study
from sctune.search.space.definition import Space, Values
from sctune.search.space.parameter import as_number, nearest_value
from sctune.search.space.variants import VARIANT
from sctune.search.suggest.beliefs import WIDTH, Centre, Prior, centre_point

PAPER = "paper"
_METHOD = "method.name"


def read_priors(
    given: Sequence[str], space: Space, sampler: str, method: str | None, study_root: Path, storage: str | None
) -> tuple[Prior, ...]:
    """The priors of `--prior`: `paper`, files and names of earlier studies.

    method: of `--method`. study_root, storage: where earlier studies are looked for. Raises ConfigError, or StudyError
    for an earlier study that is not there, with one line that names the prior.
    """
    if given and sampler == "grid":
        raise ConfigError(
            f"--prior {given[0]}: sampler grid tries every point, whatever is believed; take --sampler tpe, or leave "
            "the prior out"
        )
    for index, name in enumerate(given):
        if name in given[:index]:
            raise ConfigError(f"--prior {name} is given twice; once is enough")
    return tuple(_read(name, space, method, study_root, storage) for name in given)


def _read(name: str, space: Space, method: str | None, study_root: Path, storage: str | None) -> Prior:
    if name == PAPER:
        return prior_of_paper(space, method)
    if Path(name).suffix in (".yaml", ".yml"):
        return prior_of_file(name, space)
    return prior_of_study(name, space, study_root, storage)


def prior_of_paper(space: Space, method: str | None = None) -> Prior:
    """The published configurations of the space's methods where they lie in it, the base's own method first.

    A number outside a range is put to its end, or to the nearest of listed ones; another choice than the space has is
    not believed in. method: a published name, of `--method`. Raises ConfigError where nothing of it applies.
    """
    names = sorted(space.field_values(_METHOD), key=lambda name: name != space.base.method.name)
    centres = []
    for name in names:
        published = next(iter(method_entry(name).published), None)
        if name == space.base.method.name and method is not None:
            published = method
        if published is None:
            continue
        config = load_profile("paper").override(method_values(published, "paper"))
        values = _in_space(space, config)
        if values:
            centres.append(Centre(values=values))
    if not centres:
        raise ConfigError(f"--prior {PAPER}: it says nothing of what space {space.name} searches; leave it out")
    more = f" (and {len(centres) - 1} other methods')" if len(centres) > 1 else ""
    return Prior(kind="paper", name=PAPER, centres=tuple(centres), note=f"{said(space, centres[0])}{more}")


def _in_space(space: Space, config: TrialConfig) -> Values:
    """What a configuration has for the parameters that are active there."""
    flat = config.flat()
    variant = _variant_of(space, flat)
    found: Values = {} if variant is None else {VARIANT: variant}
    for parameter in space.parameters:
        if parameter.name in flat and (near := nearest_value(parameter, flat[parameter.name])):
            found[parameter.name] = near[0]
    return _active(space, found, flat)


def _active(space: Space, values: Values, flat: Mapping[str, Any]) -> Values:
    """Without what another value of the same configuration makes inactive, whether or not that one is believed."""
    held = {
        parameter.name: flat[parameter.name]
        for parameter in space.parameters
        if parameter.name in flat and parameter.name not in values
    }
    chosen: Values = {}
    for parameter in space.parameters:
        if parameter.name in values and space.is_active(parameter, held | chosen):
            chosen[parameter.name] = values[parameter.name]
    return chosen


def _variant_of(space: Space, flat: Mapping[str, Any]) -> str | None:
    """The one variant that is like a configuration, or else the only one of its method; None where there is none."""
    views = {name: space.in_variant(name) for name in space.variants}
    own = {name: view for name, view in views.items() if view.get(_METHOD, space.base.method.name) == flat[_METHOD]}
    same = [
        name for name, view in own.items() if all(flat.get(field) == v for field, v in view.items() if field != VARIANT)
    ]
    likely = same or list(own)
    return likely[0] if len(likely) == 1 else None


def prior_of_file(name: str, space: Space) -> Prior:
    """A file of `field: value` or `field: {value: ..., width: ...}`; `variant` may be a field.

    width: in (0, 1]; standard deviation as a share of the range on the parameter's own scale (of the list's length for
    an ordered one); of unordered choices the chance that any is taken. Fields that the space does not search are left
    out and named. Raises ConfigError for an unknown field, a value outside the space, a bad width, and where nothing is
    left.
    """
    where = f"--prior {name}"
    path = Path(name).expanduser()
    values: Values = {}
    widths: dict[str, float] = {}
    idle: list[str] = []
    for field, content in read_yaml(path).items():
        value, width = _entry(str(field), content, where)
        parameter = space.by_name.get(str(field))
        if parameter is None:
            if not is_field(str(field)):
                raise ConfigError(f"{where}: unknown configuration key {field!r}; {nearest(str(field), _known(space))}")
            idle.append(str(field))
            continue
        if not parameter.contains(value):
            raise ConfigError(f"{where}: {field}={value!r} is outside space {space.name}; it is {parameter.describe()}")
        values[parameter.name] = value
        widths |= {} if width is None else {parameter.name: width}
    if not values:
        raise ConfigError(
            f"{where}: none of its fields is searched by space {space.name}, which has {', '.join(space.by_name)}"
        )
    centre = Centre(values=values, widths=widths)
    if not centre_point(space, centre):
        raise ConfigError(f"{where}: with these values none of them has an effect in space {space.name}")
    left = f"; not searched: {', '.join(idle)}" if idle else ""
    return Prior(kind="file", name=name, centres=(centre,), note=f"{said(space, centre)}{left}")


def _known(space: Space) -> list[str]:
    return [*dict.fromkeys((*space.by_name, *FIELD_NAMES))]


def _entry(field: str, content: Any, where: str) -> tuple[Any, float | None]:
    """Value and width."""
    if not isinstance(content, Mapping):
        return as_number(content), None
    keys = ("value", "width")
    for key in content:
        if key not in keys:
            raise ConfigError(f"{where}: {field}: unknown key {key!r}; {nearest(str(key), keys)}")
    if "value" not in content:
        raise ConfigError(f"{where}: {field}: write {{value: ..., width: ...}}, got {dict(content)!r}")
    width = as_number(content.get("width", WIDTH))
    if isinstance(width, bool) or not isinstance(width, int | float) or not (0 < width <= 1 and math.isfinite(width)):
        raise ConfigError(
            f"{where}: {field}.width: {width!r} must lie above 0 and be 1 at most; {WIDTH} is what it is without"
        )
    return as_number(content["value"]), float(width)


def said(space: Space, centre: Centre) -> str:
    """A centre in words."""
    named = ", ".join(f"{name}={value}" for name, value in centre.values.items())
    return f"{named}; {len(centre.values)} of {len(space.parameters)} parameters"
