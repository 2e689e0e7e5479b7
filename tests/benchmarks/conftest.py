"""The scripts of benchmarks/ are no package: each is run by itself, with its folder on the path."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
