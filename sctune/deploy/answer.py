"""The table that a model gives MLflow; apart from the rest, since pandas takes long to import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd


class Answer(pd.DataFrame):
    """A DataFrame whose records hold None for NaN: MLflow's server writes them as JSON, which knows no NaN."""

    @classmethod
    def of(cls, columns: Mapping[str, Sequence[Any]], numbers: str) -> Answer:
        """Columns in their order: `numbers` as float64, all others as objects, also where there are no rows."""
        return cls(
            {
                name: np.array(values, np.float64) if name == numbers else pd.Series(values, dtype=object)
                for name, values in columns.items()
            }
        )

    @property
    def _constructor(self) -> type[pd.DataFrame]:
        # what is made of it is a plain table
        return pd.DataFrame

    def to_dict(self, orient: Any = "dict", *, into: Any = dict, index: bool = True) -> Any:
        """As pandas' own, with None in place of NaN."""
        plain = pd.DataFrame(self).astype(object)
        return plain.where(plain.notna(), None).to_dict(orient, into=into, index=index)
