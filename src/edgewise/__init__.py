"""edgewise: distil, prune, quantize, convert, measure and gate models for edge devices."""

from __future__ import annotations

__version__ = "0.5.0"
