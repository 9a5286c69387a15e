"""Builds Jittor's wheel from Jittor's own source, whose metadata then asks for any NumPy instead of numpy<2.0.

A build backend, called by pip for the line in requirements.txt. support/numpy2.h makes that true.
"""

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

JITTOR = re.search("jittor==[0-9.]+", Path(__file__).resolve().parents[2].joinpath("requirements.txt").read_text())[0]


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    from setuptools import build_meta

    folder = Path(wheel_directory, "jittor-source")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary=jittor", "-d", folder, JITTOR]
    subprocess.run(command, check=True)
    archive = next(folder.glob("jittor-*.tar.gz"))
    with tarfile.open(archive) as tar:
        tar.extractall(folder)
    os.chdir(str(archive)[: -len(".tar.gz")])
    setup = Path("setup.py")
    setup.write_text(setup.read_text(encoding="utf-8").replace('"numpy<2.0"', '"numpy"'), encoding="utf-8")
    return build_meta.build_wheel(wheel_directory)
