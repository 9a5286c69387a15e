"""What the scripts lean on, and a reader of the experiment may skip. Nothing here imports a script.

device.py               the only door to Jittor: jt and nn
start.py                its start: what goes wrong there is mended, or said in one sentence
patches.py              Jittor's own sources, mended as they are loaded
mpi.py                  this process among those that mpirun started
limits.py               how much memory and how many cores this process may use
flags.py                command lines: types that check what is typed, and a parser
idx.py                  reads and checks data;  class_folders.py  those with a folder a class;  mnist.py  for Jittor
evaluation.py           what an evaluation measures
digit_classifier.py     a classifier for scores that mean something on digits; its weights beside it
inception.py            the network behind FID;  inception_weights.py  reads its weights
inception_sources.py    finds and fetches these weights
images.py               finds and reads the images that people bring
fast/                   the same numbers, faster: layers.py with layers.h and for GPUs layers.cuh, adam.py
saved/                  what stays on disk: paths.py, log.py, checkpoint.py, kept.py, classifier.py, statistics.py
pages/                  what people look at, made from that: pictures.py, page.py, page.html, networks.py, animation.py
runs/                   what makes it: run.py, process.py, resume.py, export.py

Flags are checked before Jittor is imported, which compiles for minutes the first time. So a module either needs Jittor
(device, mnist, evaluation, digit_classifier, inception, fast, run, export) or, like all others, does not.
"""

import os
import sys

from support.limits import cores

if not (3, 8) <= sys.version_info[:2] <= (3, 13):
    sys.exit(
        f"This is Python {sys.version_info[0]}.{sys.version_info[1]}; Jittor, on NumPy 1, needs Python 3.8 to 3.13, "
        "which uv (uv venv --seed --python 3.12 .venv) or conda (conda create -n cgan python=3.12) brings."
    )
os.environ.setdefault("OMP_NUM_THREADS", str(cores()))  # NumPy and Jittor, imported later, would count the machine's
