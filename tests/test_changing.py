"""docs/changing.md: every recipe is a change that trains, resumes to the same bits and draws."""

import json
import re
import types

import pytest
from conftest import ROOT, own, read_log
from PIL import Image
from test_resume import outcome

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


CASES = [*recipes(), ("another network and optimizer", OTHER)]


@pytest.mark.parametrize(
    "diff", [pytest.param(diff, id=x, marks=[pytest.mark.slow] * (i > 0)) for i, (x, diff) in enumerate(CASES)]
)
def test_a_recipe_trains_resumes_and_draws(tmp_path, diff):
    variant, straight, resumed = types.ModuleType("changed"), tmp_path / "straight", tmp_path / "resumed"
    exec(changed(diff), vars(variant))
    for folder, flags in ((straight, [*FLAGS, 2]), (resumed, [*FLAGS, 1]), (resumed, ["--resume", "--n_epochs", 2])):
        variant.train(variant.parse_flags(own([*flags, "--output_dir", folder])))
    expected, found = outcome(straight), outcome(resumed)
    for log in found[1]:
        del log["evaluations"][0]  # of the epoch that was the last at first
    assert found == expected
    variant.draw_digits(variant.parse_flags(["--digits", "31", "--output_dir", str(straight)]))
    assert Image.open(straight / "images" / "digits.png").size == (70, 36)
    page, row = (straight / "results" / "run.html").read_text(encoding="utf-8"), read_log(straight)["epochs"][0]
    recorded = [name for name in row if f"{name}_last" in row]
    assert {"d_loss", "g_loss"} <= set(recorded)
    assert all(json.dumps(name) in page for name in recorded)
