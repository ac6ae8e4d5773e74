"""The slowest of a job's GPUs, for which all others wait."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.cluster import Cluster

FloatColumn = NDArray[np.float64]


def slowest_gpu(cluster: Cluster, gpus: FloatColumn) -> FloatColumn:
    """Times as long as the mean GPU that the slowest of so many takes for what the power limit bounds, ``(n,)``.

    Speeds are normally distributed with ``cluster.gpu_spread``; the largest of n draws lies at the quantile (n - 0.375) / (n + 0.25) in the
    mean (Blom 1958): 0 for one, 1.43 deviations for 8, 3.03 for 512.
    """
    distinct, where = np.unique(gpus, return_inverse=True)
    deviations = np.array([NormalDist().inv_cdf((n - 0.375) / (n + 0.25)) for n in distinct.tolist()])
    return np.asarray(1.0 + cluster.gpu_spread * deviations[where], dtype=np.float64)
