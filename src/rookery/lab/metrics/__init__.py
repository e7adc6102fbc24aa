"""What is measured of a state and of what follows from it; each number has a unit or is relative, and says which.

change: how much and how steadily. spectra: how many dimensions. decay: how fast it forgets. dynamics: where it goes.
divergence: how far outputs lie apart. sensitivity: what a push does. uncertainty: how sure. probe: what can be read.
"""

from __future__ import annotations

from rookery.lab.metrics.arrays import nonfinite, parts, vector
from rookery.lab.metrics.change import (
    Change,
    Steadiness,
    coherence,
    coherence_cv,
    coherences,
    compare,
    cosine,
    max_abs,
    rel_delta,
    rms,
    standardised_delta,
    state_delta,
    white_noise_coherence,
)
from rookery.lab.metrics.decay import (
    Band,
    Bounds,
    Factors,
    check_bounds,
    half_life,
    impulse_response,
    response_half_life,
    static_log_decay,
    traced_half_life,
    transitions,
    v7_factors,
)
from rookery.lab.metrics.divergence import (
    Event,
    Survival,
    edit_distance,
    first_difference,
    kl,
    log_softmax,
    survival,
)
from rookery.lab.metrics.dynamics import (
    Growth,
    Memory,
    Recovery,
    autocorrelation_time,
    lyapunov,
    recovery,
    transient_growth,
)
from rookery.lab.metrics.probe import Probe, linear_probe
from rookery.lab.metrics.sensitivity import Sensitivity, step_sweep
from rookery.lab.metrics.spectra import (
    Principal,
    effective_rank,
    participation_ratio,
    pca,
    singular_values,
    stable_rank,
)
from rookery.lab.metrics.uncertainty import (
    Interval,
    benjamini_hochberg,
    bootstrap,
    moving_blocks,
    paired,
    sign_flip,
)

__all__ = [
    "Band",
    "Bounds",
    "Change",
    "Event",
    "Factors",
    "Growth",
    "Interval",
    "Memory",
    "Principal",
    "Probe",
    "Recovery",
    "Sensitivity",
    "Steadiness",
    "Survival",
    "autocorrelation_time",
    "benjamini_hochberg",
    "bootstrap",
    "check_bounds",
    "coherence",
    "coherence_cv",
    "coherences",
    "compare",
    "cosine",
    "edit_distance",
    "effective_rank",
    "first_difference",
    "half_life",
    "impulse_response",
    "kl",
    "linear_probe",
    "log_softmax",
    "lyapunov",
    "max_abs",
    "moving_blocks",
    "nonfinite",
    "paired",
    "participation_ratio",
    "parts",
    "pca",
    "recovery",
    "rel_delta",
    "response_half_life",
    "rms",
    "sign_flip",
    "singular_values",
    "stable_rank",
    "standardised_delta",
    "state_delta",
    "static_log_decay",
    "step_sweep",
    "survival",
    "traced_half_life",
    "transient_growth",
    "transitions",
    "v7_factors",
    "vector",
    "white_noise_coherence",
]
