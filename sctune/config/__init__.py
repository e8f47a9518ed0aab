"""Everything that a trial can be told: its fields, their checks, profiles and dotted overrides."""

from sctune.config.assignments import parse_assignments, read_yaml, yaml_text
from sctune.config.data import TASK_FIELDS, DataConfig, SelectionMode, Setting, Task
from sctune.config.fields import (
    FIXED_FIELDS,
    AugmentConfig,
    BudgetConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    RuntimeConfig,
    ScoreConfig,
)
from sctune.config.methods import (
    Conditions,
    DeviationSection,
    MethodEntry,
    MethodSection,
    method_entries,
    method_entry,
    register,
)
from sctune.config.profiles import SearchDefaults, load_profile, profile_names, search_defaults
from sctune.config.section import Section
from sctune.config.trial import (
    FIELD_NAMES,
    FIELD_NAMES_OR_SECTIONS,
    TrialConfig,
    field_names,
    is_field,
    set_dotted,
)

__all__ = [
    "FIELD_NAMES",
    "FIELD_NAMES_OR_SECTIONS",
    "FIXED_FIELDS",
    "TASK_FIELDS",
    "AugmentConfig",
    "BudgetConfig",
    "Conditions",
    "DataConfig",
    "DeviationSection",
    "LossConfig",
    "MethodEntry",
    "MethodSection",
    "ModelConfig",
    "OptimConfig",
    "RuntimeConfig",
    "ScoreConfig",
    "SearchDefaults",
    "Section",
    "SelectionMode",
    "Setting",
    "Task",
    "TrialConfig",
    "field_names",
    "is_field",
    "load_profile",
    "method_entries",
    "method_entry",
    "parse_assignments",
    "profile_names",
    "read_yaml",
    "register",
    "search_defaults",
    "set_dotted",
    "yaml_text",
]
