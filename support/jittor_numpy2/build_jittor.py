"""Builds Jittor's wheel from Jittor's own source, whose metadata then asks for any NumPy instead of numpy<2.0.

A build backend, which pip calls for the archive beside this file: it holds this folder's other files, and pip finds it
by requirements.txt, in whatever folder it is started. support/numpy2.h makes true what the wheel says.
"""

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

VERSION, LOCAL = re.search(r"Version: (.*)(\+.*)", Path(__file__).with_name("PKG-INFO").read_text()).groups()


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    from setuptools import build_meta

    folder = Path(wheel_directory, "jittor-source")
    download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary=jittor"]
    subprocess.run([*download, "-d", folder, f"jittor=={VERSION}"], check=True)
    archive = next(folder.glob("jittor-*.tar.gz"))
    with tarfile.open(archive) as tar:
        tar.extractall(folder)
    os.chdir(str(archive)[: -len(".tar.gz")])
    setup = Path("setup.py")
    text = setup.read_text(encoding="utf-8").replace('"numpy<2.0"', '"numpy"')
    setup.write_text(text.replace("version=version", f'version=version + "{LOCAL}"'), encoding="utf-8")
    return build_meta.build_wheel(wheel_directory)
