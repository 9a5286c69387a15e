"""Adam computes what jittor.nn.Adam computes."""

import numpy as np

import cgan
from support.adam import Adam
from support.device import jt
