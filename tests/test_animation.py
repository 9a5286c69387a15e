"""An animation of sample grids."""

import numpy as np
from conftest import ROOT, run
from PIL import Image

from support.pages.animation import animate, pick


def test_the_first_and_the_last_grid_and_more_of_the_early_ones():
    picked = pick(list(range(94)))
    assert picked[0] == 0 and picked[-1] == 93 and len(picked) == len(set(picked)) <= 40
    assert picked[1] == 1 and max(np.diff(picked)) == picked[-1] - picked[-2] > 1
    assert pick([7]) == [7] and pick([1, 2, 3]) == [1, 2, 3]


def test_grids_in_the_order_of_their_batches(tmp_path):
    grays = {"0": 0, "200": 85, "1000": 170, "20000": 255}
    for name, gray in grays.items():
        Image.fromarray(np.full((20, 80), gray, np.uint8)).save(tmp_path / f"{name}.png")
    for name in ("digits.png", "2024-holiday.png", "9.png.png"):  # no grids
        Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / name)
    animate(str(tmp_path), str(tmp_path / "run.gif"))
    with Image.open(tmp_path / "run.gif") as animation:
        assert animation.n_frames == 4 and animation.info["loop"] == 0
        for i, gray in enumerate(grays.values()):
            animation.seek(i)
            frame = np.asarray(animation.convert("L"), int)
            assert abs(frame[:20] - gray).max() <= 8 and frame[20:].max() > 200  # the caption


def test_what_cannot_be_animated_is_one_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "1000.png").write_bytes(b"PNG")
    for arguments, named in (
        ([tmp_path, "run.gif"], "1000.png"),
        (["empty", "run.gif"], "empty"),
        (["missing", "run.gif"], "missing"),
        (["empty"], "target"),
    ):
        process = run("-m", "support.pages.animation", *arguments, cwd=tmp_path, PYTHONPATH=str(ROOT))
        assert process.returncode == 2 and process.stderr.count("\n") == 1 and named in process.stderr
    assert not list(tmp_path.glob("run.gif*"))
