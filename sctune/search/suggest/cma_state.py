"""CMA-ES's distribution as plain numbers: Optuna keeps it as a pickle, and nothing that sctune reads back holds one.

The one file that touches private parts of cmaes; tests/test_private_parts.py names what an update took.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from typing import Any

import cmaes
import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from sctune.search.suggest.optuna_private import CMA_PICKLE

STATE = "cma:state"
"""System attribute of the trial that began a generation; its distribution, as JSON."""

_log = logging.getLogger(__name__)


class CmaState(BaseModel):
    """What changes from generation to generation, and what the optimizer was made with.

    mean, p_sigma, p_c: (dimensions,); cov: (dimensions, dimensions); bounds: (dimensions, 2), of the unit cube.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    generation: int
    population: int
    resampling: int
    sigma: float
    mean: list[float]
    p_sigma: list[float]
    p_c: list[float]
    cov: list[list[float]]
    bounds: list[list[float]]

    @classmethod
    def of(cls, optimizer: cmaes.CMA) -> CmaState:
        return cls(
            generation=optimizer.generation,
            population=optimizer.population_size,
            resampling=optimizer._n_max_resampling,
            sigma=float(optimizer._sigma),
            mean=optimizer.mean.tolist(),
            p_sigma=optimizer._p_sigma.tolist(),
            p_c=optimizer._pc.tolist(),
            cov=optimizer._C.tolist(),
            bounds=optimizer._bounds.tolist(),
        )

    def optimizer(self) -> cmaes.CMA:
        """The optimizer at the start of the generation. Raises ValueError or AssertionError for impossible numbers."""
        optimizer = cmaes.CMA(
            mean=np.array(self.mean),
            sigma=self.sigma,
            cov=np.array(self.cov),
            bounds=np.array(self.bounds),
            population_size=self.population,
            n_max_resampling=self.resampling,
        )
        p_sigma, p_c = np.array(self.p_sigma), np.array(self.p_c)
        if not p_sigma.shape == p_c.shape == (optimizer.dim,):
            raise ValueError("its paths are of other dimensions than its mean")
        optimizer._p_sigma, optimizer._pc, optimizer._g = p_sigma, p_c, self.generation
        return optimizer


def stored_attrs(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """A proposed trial's system attributes as the record takes them; attrs: of a study in this process's memory."""
    plain = {key: value for key, value in attrs.items() if not key.startswith(CMA_PICKLE)}
    pieces = [attrs[f"{CMA_PICKLE}:{piece}"] for piece in range(len(attrs) - len(plain))]
    if pieces:
        # Optuna pickled it in this process a moment ago
        plain[STATE] = CmaState.of(pickle.loads(bytes.fromhex("".join(pieces)))).model_dump()
    return plain


def restored_attrs(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """System attributes for Optuna's samplers; attrs: as the record holds them, pickles of anybody left out."""
    plain = {key: value for key, value in attrs.items() if not key.startswith(CMA_PICKLE) and key != STATE}
    if STATE in attrs:
        try:
            optimizer = CmaState.model_validate(attrs[STATE]).optimizer()
        except (ValidationError, ValueError, AssertionError) as problem:
            _log.warning("a stored CMA-ES distribution was left out: %s", str(problem).splitlines()[0])
        else:
            plain[f"{CMA_PICKLE}:0"] = pickle.dumps(optimizer).hex()
    return plain
