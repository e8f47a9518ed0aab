"""Everything a trial can be told, as one frozen tree; strict loading and dotted overrides.

A profile sets values of the tree, a space fixes and varies them, `--set` overrides. Nothing is ignored:
an unknown key or an impossible combination raises ConfigError before any work starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationError, model_validator

from sctune.backbones.registry import backbone_entry, feature_side, tap_list
from sctune.config.data import DataConfig, Task
from sctune.config.fields import (
    AugmentConfig,
    BudgetConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    RuntimeConfig,
    ScoreConfig,
)
from sctune.config.methods import (
    DEFAULT,
    METHOD_SECTIONS,
    DeviationSection,
    MethodEntry,
    MethodSection,
    method_entries,
    method_entry,
    read_section,
)
from sctune.config.section import Section
from sctune.errors import ConfigError, nearest
from sctune.geometry import scale_sizes

FORMAT_VERSION = 1
"""Of a configuration that stands in a file of its own."""


class TrialConfig(Section):
    """One complete configuration; `TrialConfig()` is the paper's method with the corrections that the README names."""

    method: Annotated[SerializeAsAny[MethodSection], BeforeValidator(read_section)] = Field(
        DeviationSection(), description="how anomalies are found: `name`, and the settings of that method alone"
    )
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    score: ScoreConfig = ScoreConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    budget: BudgetConfig = BudgetConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    seed: int = Field(42, ge=0, lt=2**32, description="drives split, initial weights, batches and augmentation")

    @property
    def entry(self) -> MethodEntry:
        """What is known of its method."""
        return method_entry(self.method.name)

    @property
    def epochs(self) -> int:
        """Epochs of a full run: one where the method trains nothing."""
        return self.budget.epochs if self.entry.trains else 1

    @property
    def n_anomalies(self) -> int | Literal["all"]:
        """Labelled anomalies trained on: 0 in the anomaly-free setting."""
        return 0 if self.data.setting == "anomaly-free" else self.data.n_anomalies

    @property
    def normal_slots(self) -> int:
        """Batch slots for normal images (pseudo slots included); all of them where there are no anomalies."""
        size = self.budget.batch_size
        return size if self.n_anomalies == 0 else int(size * self.data.balance + 1e-9)

    def learning_rate(self, epoch: int) -> float:
        """Adam's learning rate in an epoch, the first being 0: it drops by `gamma` after each `step_fraction`.

        It begins with `optim.lr`, or with the rate of a method that has its own.
        """
        first = self.optim.lr if self.method.own_rate is None else self.method.own_rate
        counted = epoch + (1 if self.optim.step_when == "start" else 0)
        drops = counted // max(1, round(self.optim.step_fraction * self.budget.epochs))
        return first * self.optim.gamma**drops

    @model_validator(mode="after")
    def _check_data(self) -> Self:
        data = self.data
        if (data.setting == "hard") != (data.known_class is not None):
            word = "needs" if data.setting == "hard" else "takes no"
            raise ValueError(f"data.setting={data.setting} {word} data.known_class; it goes with setting=hard only")
        anomalous = self.budget.batch_size - self.normal_slots
        if self.normal_slots < 2 or (self.n_anomalies != 0 and anomalous < 1):
            raise ValueError(
                f"budget.batch_size={self.budget.batch_size} with data.balance={data.balance:.3g} leaves "
                f"{self.normal_slots} normal and {anomalous} anomalous slots; at least 2 and 1 are needed"
            )
        return self

    @model_validator(mode="after")
    def _check_uses(self) -> Self:
        entry = self.entry
        for section in METHOD_SECTIONS:
            held = getattr(self, section)
            for leaf, field in type(held).model_fields.items():
                name, value = f"{section}.{leaf}", getattr(held, leaf)
                if not entry.looks_at(name) and value != field.default:
                    others = " or ".join(other.name for other in method_entries() if other.looks_at(name))
                    raise ValueError(
                        f"{name}={value!r}: method {entry.name} has no use for it; leave it out, or use method.name="
                        f"{others}"
                    )
        if self.data.setting not in entry.settings:
            raise ValueError(
                f"data.setting={self.data.setting}: method {entry.name} cannot be trained in it; use "
                f"{' or '.join(entry.settings)}, or another method"
            )
        return self

    @model_validator(mode="after")
    def _check_model(self) -> Self:
        model, size = self.model, self.data.image_size
        if not self.entry.looks_at("model.backbone"):
            return self
        n_blocks = backbone_entry(model.backbone).n_blocks
        if model.freeze > n_blocks:
            raise ValueError(f"model.freeze={model.freeze}: {model.backbone} has {n_blocks} blocks")
        taken = f"model.tap={model.tap}" if model.taps is None else f"model.taps={model.taps}"
        try:
            tap_list(model.backbone, model.tap_names)
        except ValueError as problem:
            raise ValueError(f"{taken}: {problem}") from None
        scales = model.n_scales if self.entry.looks_at("model.n_scales") else 1
        for scale in scale_sizes(size, scales):
            try:
                side = feature_side(scale, model.backbone, model.tap_names)
            except ValueError as problem:
                raise ValueError(f"data.image_size={size}, model.n_scales={model.n_scales}: {problem}") from None
            if side < 1:
                raise ValueError(
                    f"data.image_size={size}: the {scale} px scale is too small for {model.backbone} with "
                    f"{taken}; use a larger data.image_size, model.n_scales=1 or model.tap=middle"
                )
        return self

    @model_validator(mode="after")
    def _check_by_method(self) -> Self:
        self.entry.check(self)
        return self

    @staticmethod
    def load(tree: Mapping[str, Any]) -> TrialConfig:
        """Strictly read a nested dictionary, as `document` writes it too; raises ConfigError with one line."""
        content = dict(tree)
        version = content.pop("format_version", FORMAT_VERSION)
        if version != FORMAT_VERSION:
            raise ConfigError(
                f"the configuration has format_version {version!r}, this sctune reads {FORMAT_VERSION}; update sctune"
            )
        return _validate(_without_earlier_weight(_with_earlier_decoding(content)))

    def document(self) -> dict[str, Any]:
        """The nested dictionary for a file that is read back, with its format_version."""
        return {"format_version": FORMAT_VERSION, **self.model_dump()}

    def flat(self) -> dict[str, Any]:
        """Dotted name -> value of every field, in declaration order."""
        return dict(leaves(self.model_dump()))

    def for_task(self, task: Task) -> TrialConfig:
        """This configuration on one task; the task wins over the configuration."""
        return self.override(
            {
                "data.source": task.source,
                "data.category": task.category,
                "data.setting": task.setting,
                "data.known_class": task.known_class,
                "seed": task.seed,
            }
        )

    def override(self, values: Mapping[str, Any]) -> TrialConfig:
        """A copy with dotted names replaced; raises ConfigError for unknown names and bad values.

        Another `method.name` sets what belonged to the method before back to its defaults: the rest of the section,
        and fields that the new one has no use for.
        """
        tree = self.model_dump()
        method = values.get("method.name", self.method.name)
        if method != self.method.name:
            tree = _with_method(tree, method_entry(method))
        for name, value in values.items():
            set_dotted(tree, name, value)
        return _validate(tree)


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of a nested tree."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _with_method(tree: Mapping[str, Any], entry: MethodEntry) -> dict[str, Any]:
    """A whole tree under another method."""
    changed = {**tree, "method": {"name": entry.name}}
    for section in METHOD_SECTIONS:
        fields = TrialConfig.model_fields[section].default.model_dump()
        changed[section] = {
            leaf: value if entry.looks_at(f"{section}.{leaf}") else fields[leaf]
            for leaf, value in tree[section].items()
        }
    return changed


# unchecked: the entry of a method, which checks, imports this module
FIELD_NAMES = tuple(TrialConfig.model_construct().flat())
"""Dotted names of all fields but those of single methods, which `field_names` has too."""
_NAMES = frozenset(FIELD_NAMES)
FIELD_NAMES_OR_SECTIONS = _NAMES | set(TrialConfig.model_fields)


def field_names() -> tuple[str, ...]:
    """Dotted names of all fields, with those of every known method's own section."""
    own = (f"method.{name}" for entry in method_entries() for name in entry.section.model_fields)
    return tuple(dict.fromkeys((*FIELD_NAMES, *own)))


def is_field(name: str) -> bool:
    section, _, leaf = name.partition(".")
    return name in _NAMES or (
        section == "method" and any(leaf in entry.section.model_fields for entry in method_entries())
    )


def set_dotted(tree: dict[str, Any], name: str, value: Any) -> None:
    """Set one dotted name of a nested tree; ConfigError with the nearest name when there is none such."""
    if not is_field(name):
        raise ConfigError(f"unknown configuration key {name!r}; {nearest(name, field_names())}")
    *path, leaf = name.split(".")
    for part in path:
        tree = tree.setdefault(part, {})
    tree[leaf] = value


def _with_earlier_decoding(content: dict[str, Any]) -> dict[str, Any]:
    """Whole configurations that were stored before `data.range` was: their images are decoded as they were then."""
    data = content.get("data")
    if not isinstance(data, Mapping) or "range" in data or not {"source", "resize", "skip_corrupt"} <= data.keys():
        return content
    return content | {"data": {"range": "container", "page": 1, "alpha": "drop", "reduce": False, **data}}


def _without_earlier_weight(content: dict[str, Any]) -> dict[str, Any]:
    """1 was the default of `score.density`, which methods without heads were stored with too."""
    method, score = content.get("method"), content.get("score")
    if not isinstance(method, Mapping) or not isinstance(score, Mapping) or method.get("name") == DEFAULT:
        return content
    kept = {name: value for name, value in score.items() if (name, value) != ("density", 1.0)}
    return content | {"score": kept}


def _validate(tree: Mapping[str, Any]) -> TrialConfig:
    for name in dict(leaves(tree)):
        # `read_section` judges those of a method
        if name not in FIELD_NAMES_OR_SECTIONS and not name.startswith("method."):
            raise ConfigError(f"unknown configuration key {name!r}; {nearest(name, field_names())}")
    try:
        return TrialConfig.model_validate(tree)
    except ValidationError as problem:
        raise ConfigError(_one_line(problem)) from None


def _one_line(problem: ValidationError) -> str:
    first = problem.errors()[0]
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    name = ".".join(str(part) for part in first["loc"])
    known = next((field for field in FIELD_NAMES if f"{name}.".startswith(f"{field}.")), name)
    return f"{known}={first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"
