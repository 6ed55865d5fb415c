"""Tensors in, tensors out: the only importer of the kernels and of native code."""

from .anchored_adamw import anchored_adamw as anchored_adamw
from .fingerprint_loss import FingerprintLoss as FingerprintLoss
from .fingerprint_loss import fingerprint_loss as fingerprint_loss
from .linear_cross_entropy import LinearCrossEntropy as LinearCrossEntropy
from .linear_cross_entropy import linear_cross_entropy as linear_cross_entropy
from .perinucleus import Perinucleus as Perinucleus
from .perinucleus import perinucleus as perinucleus

__all__ = [
    "FingerprintLoss",
    "LinearCrossEntropy",
    "Perinucleus",
    "anchored_adamw",
    "fingerprint_loss",
    "linear_cross_entropy",
    "perinucleus",
]
