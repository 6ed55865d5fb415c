"""Tensors in, tensors out: the only importer of the kernels and of native code."""

from .perinucleus import Perinucleus as Perinucleus
from .perinucleus import perinucleus as perinucleus

__all__ = ["Perinucleus", "perinucleus"]
