"""What a reader of the experiment may skip."""

import os
import sys

if not (3, 8) <= sys.version_info[:2] <= (3, 13):
    sys.exit(
        f"This is Python {sys.version_info[0]}.{sys.version_info[1]}; Jittor, on NumPy 1, needs Python 3.8 to 3.13, "
        "which uv (uv venv --seed --python 3.12 .venv) or conda (conda create -n cgan python=3.12) brings."
    )
for stream in ("stdout", "stderr"):
    if getattr(sys, stream) is None:  # the shell closed it: >&-
        setattr(sys, stream, open(os.devnull, "w"))
