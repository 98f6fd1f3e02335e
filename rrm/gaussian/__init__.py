"""Gaussian filtering in many dimensions: `GaussianFilter` and the features of pixels."""

from rrm.gaussian.filter import (
    FLOATING,
    GaussianFilter,
    has_compiled_lattice,
    position_colour_features,
    position_features,
)

__all__ = ["FLOATING", "GaussianFilter", "has_compiled_lattice", "position_colour_features", "position_features"]
