"""docs/changing.md: every recipe is a change that trains, resumes to the same bits and draws."""

import importlib.util
import json
import re

import numpy as np
import pytest
from conftest import ROOT, own, promised, read_log, read_npz
from PIL import Image

FLAGS = "--max_batches 2 --sample_interval 1 --fid_samples 2 --n_epochs".split()
# Beside the recipes: networks without .model, which the page leaves out, and an optimizer with another state
OTHER = """-        self.model = FusedSequential(
+        self.layers = nn.Sequential(
             *block(latent_dim + n_classes, 128, normalize=False),
...
-        images = self.model(self.label_embedding(labels), noise)  # concatenates its inputs
+        images = self.layers(jt.concat([self.label_embedding(labels), noise], dim=1))
...
-        self.model = FusedSequential(
+        self.layers = FusedSequential(
             nn.Linear(n_classes + img_size * img_size, hidden),
...
-        return self.model(images.reshape(images.shape[0], -1), self.label_embedding(labels))
+        return self.layers(images.reshape(images.shape[0], -1), self.label_embedding(labels))
...
-    optimizer_G = Adam(generator.parameters(), lr=opt.lr, betas=(opt.b1, opt.b2))
+    optimizer_G = nn.SGD(generator.parameters(), opt.lr, momentum=0.9)
"""


def recipes():
    """Returns [(title, diff)] of the guide."""
    guide = (ROOT / "docs" / "changing.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## \d+\. (.*?)$(.*?)(?=^## |\Z)", guide, re.MULTILINE | re.DOTALL)
    return [(title, diff) for title, text in sections for diff in re.findall(r"```diff\n(.*?)```", text, re.DOTALL)]


def changed(diff):
    """Returns cgan.py with a diff's hunks applied; each one's old lines must stand there once."""
    code = (ROOT / "cgan.py").read_text(encoding="utf-8")
    for hunk in diff.split("...\n"):
        lines = [line or " " for line in hunk.splitlines()]
        old, new = ("".join(f"{line[1:]}\n" for line in lines if line[0] in kinds) for kinds in (" -", " +"))
        assert code.count(f"\n{old}") == 1, old
        code = code.replace(f"\n{old}", f"\n{new}")
    return code


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CASES = [*recipes(), ("another network and optimizer", OTHER)]


@pytest.mark.parametrize(
    "diff", [pytest.param(diff, id=x, marks=[pytest.mark.slow] * (i > 0)) for i, (x, diff) in enumerate(CASES)]
)
def test_a_recipe_trains_resumes_and_draws(tmp_path, diff, capsys):
    path = tmp_path / "changed.py"
    path.write_text(changed(diff), encoding="utf-8")
    variant = load(path)
    for folder, n_epochs in (("straight", [2]), ("resumed", [1, 2])):
        for i, n in enumerate(n_epochs):
            flags = ["--resume"] if i else FLAGS[:-1]
            flags += ["--n_epochs", str(n), "--output_dir", str(tmp_path / folder)]
            variant.train(variant.parse_flags(own(flags)))
    logs = [promised(read_log(tmp_path / folder)) for folder in ("straight", "resumed")]
    straight, resumed = (read_npz(tmp_path / name / "results" / "checkpoint.npz") for name in ("straight", "resumed"))
    for name, value in straight.items():
        if name != "log":
            np.testing.assert_array_equal(value, resumed[name], err_msg=name)
    for rows in zip(logs[0]["epochs"], logs[1]["epochs"]):
        first, second = ({key: value for key, value in row.items() if key != "seconds"} for row in rows)
        assert first == second
    assert logs[0]["evaluations"][-1] == logs[1]["evaluations"][-1]
    opt = variant.parse_flags(["--digits", "31", "--output_dir", str(tmp_path / "straight")])
    variant.draw_digits(opt)
    assert Image.open(tmp_path / "straight" / "images" / "digits.png").size == (70, 36)
    page = (tmp_path / "straight" / "results" / "run.html").read_text(encoding="utf-8")
    recorded = [name for name in logs[0]["epochs"][0] if f"{name}_last" in logs[0]["epochs"][0]]
    assert {"d_loss", "g_loss"} <= set(recorded)
    assert all(json.dumps(name) in page for name in recorded)
