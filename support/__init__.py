"""What the scripts lean on, and a reader of the experiment may skip. Nothing here imports a script.

system.py               what the programs need of the machine, and the command that brings what is missing
device.py               the only door to Jittor: jt and nn
start.py                its start: what goes wrong there is mended, or said in one sentence
patches.py              Jittor's own sources, mended as they are loaded;  numpy2.h  so that they take NumPy 2's arrays;
                        jittor_numpy2/  has pip install Jittor beside NumPy 2
compile.py              has Jittor compile itself in less time, and what is in fast/
terminal.py             what a script owes the person who started it: whole lines, and one line at Ctrl-C; mpirun's part
limits.py               how much memory and how many cores this process may use
flags.py                command lines: types that check what is typed, and a parser
idx.py                  reads and checks data;  class_folders.py  those with one folder per class;  mnist.py  for Jittor
evaluation.py           what an evaluation measures
digit_classifier.py     a classifier for scores that mean something on digits; its weights beside it
inception.py            the network behind FID;  inception_weights.py  reads its weights
inception_sources.py    finds and fetches these weights
images.py               finds and reads the images that people bring
fast/                   the same numbers, faster: layers.py and adam.py, with operators of Jittor's graph in C++
                        (stack_op, lookup_op, adam_op) and what they compute (layers.h, layers.cuh for GPUs)
saved/                  what stays on disk: paths.py, log.py, checkpoint.py, kept.py, classifier.py, statistics.py
pages/                  what people look at, made from that: pictures.py, page.py, page.html, networks.py, animation.py
runs/                   what makes it: run.py, process.py, resume.py, export.py

Flags are checked before Jittor is imported, which compiles for minutes the first time. So a module either needs Jittor
(device, mnist, evaluation, digit_classifier, inception, fast, run, export) or, like all others, does not.
"""

import os
import sys

# Beside the scripts may lie a file of the user's such as random.py, in place of which NumPy wants Python's own
if os.path.abspath(sys.path[0]) == os.path.dirname(os.path.dirname(os.path.abspath(__file__))):
    packages = [i for i, path in enumerate(sys.path) if path.endswith("-packages")]
    sys.path.insert(min(packages, default=len(sys.path)) - 1, sys.path.pop(0))

from support import system
from support.limits import cores

system.check_python()
system.hide_warnings()
system.prefer_newest_libstdcxx()
system.check_packages()
os.environ.setdefault("OMP_NUM_THREADS", str(cores()))  # NumPy and Jittor, imported later, would count the machine's
