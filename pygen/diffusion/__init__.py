"""Diffusion: schedules, samplers as data, and the loop that runs them.

A sampler is a list of coefficients: `plan` makes it, once, and `sample_loop` runs it, with one op
(`pygen.ops.diffusion_step`) after each evaluation of the network::

    schedule = Discrete.of("scaled_linear", start=0.00085, end=0.012)
    run = plan("dpmpp-2m", schedule, 20, grid={"sigmas": "karras"})
    x = sample_loop(network, run.first_state((4, 3, 32, 32), generator=0), run, guidance=3.0)
"""

from __future__ import annotations

from .config import plan_from_config
from .grid import Discrete, Edm, Flow, Grid
from .level import Level, Predicted, predicted
from .loop import Progressed, Threshold, sample_loop
from .plan import Evaluation, Plan
from .samplers import ALIASES, SAMPLERS, plan
from .score_sde import predictor_corrector
from .step import Row, Step

__all__ = [
    "ALIASES", "SAMPLERS", "Discrete", "Edm", "Evaluation", "Flow", "Grid", "Level", "Plan", "Predicted", "Progressed",
    "Row", "Step", "Threshold", "plan", "plan_from_config", "predicted", "predictor_corrector", "sample_loop",
]  # fmt: skip
