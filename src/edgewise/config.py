"""The base of every config: frozen, no unknown keys. Torch-free, like every ``config.py`` in the rooms."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A frozen value; an unknown key is an error. Defaults live here and nowhere else."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())
