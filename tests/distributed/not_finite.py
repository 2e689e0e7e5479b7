"""Trains on two processes, of which the second's latents are not finite: not_finite.py FOLDER."""

import os
import sys
from pathlib import Path

import trainings

ROWS = 4  # of a step, on each process


class Broken(trainings.Noisy):
    """In training one row of process 1 is NaN."""

    def latents(self, moments, randn):
        latents = super().latents(moments, randn)
        if os.environ["RANK"] == "1" and len(latents) == ROWS:
            latents[2] = float("nan")
        return latents


trainings.Noisy = Broken
try:
    trainings.trained(Path(sys.argv[1]), parallel="FSDP", max_skipped_steps=0)
except ValueError as error:
    print(f"told: {error}", flush=True)
