"""MNIST, read once, is what Jittor's own loader gives; other images are read from files and folders of many kinds."""

import gzip
import shutil

import numpy as np
import pytest
from conftest import MNIST as FILES_OF_MNIST
from conftest import memory, run, write_idx
from PIL import Image

import cgan
from support import idx
from support.inception_weights import NONE
from support.mnist import MNIST, load_mnist


@pytest.mark.parametrize("img_size", [32, 20])
def test_images_are_what_jittors_loader_gives(img_size):
    ours = load_mnist(train=False, img_size=img_size)
    theirs = MNIST(train=False, transform=ours.transform)
    images, labels = ours.arrays()
    assert images.shape == (10000, 1, img_size, img_size) and ours.codes.nbytes == 10000 * img_size**2
    for i in range(0, 10000, 97):
        for a, b, c in zip(ours[i], theirs[i], (images[i], labels[i])):
            np.testing.assert_array_equal(a, b)
            np.testing.assert_array_equal(a, c)


@pytest.mark.parametrize("drop_last", [False, True])
def test_batches_are_what_jittors_loader_gives(drop_last):
    ours = load_mnist(train=False)
    theirs = MNIST(train=False, transform=ours.transform)
    for dataset in (ours, theirs):
        dataset.set_attrs(batch_size=640, shuffle=True, drop_last=drop_last)
        dataset._shuffle_rng = np.random.default_rng(3)
    batches = [[[var.numpy() for var in batch] for batch in dataset] for dataset in (ours, theirs)]
    assert len(batches[0]) == len(batches[1]) == (15 if drop_last else 16)
    for a, b in zip(*batches):
        for x, y in zip(a, b):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)


def test_the_whole_of_mnist():
    training, test = load_mnist(train=True).set_attrs(batch_size=64, shuffle=True), load_mnist(train=False)
    assert (training.total_len, test.total_len, len(training)) == (60000, 10000, 938)
    images, labels = next(iter(training))
    assert tuple(images.shape) == (64, 1, 32, 32) and tuple(labels.shape) == (64,)
    assert images.min().item() == -1 and images.max().item() == 1
    np.testing.assert_array_equal(np.bincount(training.labels)[:3], [5923, 6742, 5958])  # the real MNIST


@pytest.fixture(scope="module")
def digits():
    """MNIST's test set: images (10000, 28, 28) and labels (10000,), uint8."""
    return tuple(MNIST(train=False).mnist.values())


def test_the_four_files_under_other_names(tmp_path):
    """Unpacked, with dots for dashes, gzipped under a plain name, with a name in front."""
    for folder, is_packed, rename in (
        ("unpacked", False, lambda name: name.replace(".gz", "")),
        ("dots", False, lambda name: name.replace("-idx", ".idx").replace(".gz", "")),
        ("plain", True, lambda name: name.replace(".gz", "")),
        ("emnist", True, lambda name: f"emnist-digits-{name}".replace("t10k", "test")),
        ("both", False, lambda name: name.replace(".gz", "")),
    ):
        (tmp_path / folder).mkdir()
        for name in (name for names in idx.FILES for name in names):
            packed = (FILES_OF_MNIST / name).read_bytes()
            (tmp_path / folder / rename(name)).write_bytes(packed if is_packed else gzip.decompress(packed))
            if folder == "both":
                (tmp_path / folder / name).write_bytes(packed)
        assert idx.data_facts(str(tmp_path / folder)) == idx.MNIST
    codes, labels = idx.read_codes(str(tmp_path / "dots"), False, 32)
    np.testing.assert_array_equal(codes, load_mnist(train=False).codes)
    np.testing.assert_array_equal(labels, load_mnist(train=False).labels)


def test_letters_have_labels_from_one(tmp_path, digits):
    for names, n in zip(idx.FILES, (260, 52)):
        write_idx(tmp_path / names[0], [2051, n, 28, 28], digits[0][:n])
        write_idx(tmp_path / names[1], [2049, n], np.arange(n) % 26 + 1)
    facts = idx.data_facts(str(tmp_path))
    assert facts.labels == tuple(map(str, range(1, 27))) and facts.n_labels == 26
    np.testing.assert_array_equal(load_mnist(True, data_root=str(tmp_path)).labels, np.arange(260) % 26)


@pytest.fixture
def photos(tmp_path, digits):
    """A folder with one subfolder a class, of MNIST's first 300 test digits: its 1s are in a folder 'old one'."""
    for i, (image, label) in enumerate(zip(digits[0][:300], digits[1])):
        folder = tmp_path / "photos" / ("old one" if label == 1 else str(label))
        (folder / "below").mkdir(parents=True, exist_ok=True)
        place = folder / ("below" if i % 7 == 0 else "") / f"{i:03}.png"
        picture = Image.fromarray(image)
        (picture if i % 3 else picture.convert("RGB")).save(place)
    return tmp_path / "photos"


def test_a_folder_a_class(photos, digits, capsys):
    """Each image is that of MNIST, every tenth of a class a test image; what is no image is passed over, and said."""
    for name in ("nothing", ".hidden", "3/.hidden"):
        (photos / name).mkdir()
    for name in "nothing/note.txt 3/note.txt 3/Thumbs.db 3/.hidden/copy.png .hidden/copy.png 4/._4.png".split():
        (photos / name).write_text("x")
    labels = ("0", "2", "3", "4", "5", "6", "7", "8", "9", "old_one")
    sizes = [int(np.sum(digits[1][:300] == digit)) for digit in range(10)]
    n_test = sum(size // 10 for size in sizes)
    said = f"{300 - n_test} training and {n_test} test images, labels {', '.join(labels)}; files left out: 2 .txt"
    facts = idx.data_facts(str(photos))
    assert facts[:3] == (300 - n_test, n_test, labels)
    train, test = (load_mnist(train, 28, str(photos)) for train in (True, False))
    assert capsys.readouterr().out == f"{photos}: {said}\n"
    assert list(np.bincount(test.labels)) == [size // 10 for size in (*sizes[:1], *sizes[2:], sizes[1])]
    found = sorted((name, codes.tobytes()) for x in (train, test) for codes, name in zip(x.codes, x.labels))
    original = sorted(
        (labels.index("old_one" if label == 1 else str(label)), image.tobytes())
        for image, label in zip(digits[0][:300], digits[1])
    )
    assert found == original


def test_a_folder_with_a_test_set_of_its_own(photos, digits):
    """Beside train/; images are resized as the report's are. The checksum is of what they show, not of their files."""
    before = photos.rename(photos.with_name("train"))
    (photos / "test" / "2").mkdir(parents=True)
    before.rename(photos / "train")
    for i in range(3):
        Image.effect_noise((40 + i, 30), 50).convert("RGB").save(photos / "test" / "2" / f"{i}.png")
    facts = idx.data_facts(str(photos))
    assert facts[:2] == (300, 3)
    codes, labels = idx.read_codes(str(photos), False, 20)
    assert labels.tolist() == [1] * 3
    for i, code in enumerate(codes):
        picture = Image.open(photos / "test" / "2" / f"{i}.png")
        np.testing.assert_array_equal(code, picture.resize((20, 20), Image.BILINEAR).convert("L"))
    for path in (photos / "train").rglob("*.png"):
        Image.open(path).save(path, compress_level=0)
    assert idx.check(str(photos)) == facts
    (photos / "train" / "2").rename(photos / "train" / "two")
    with pytest.raises(ValueError, match=r"test holds classes that have no training images: 2$"):
        idx.check(str(photos))


def read_many(folder):
    """Reads the training set of a folder as training does, and prints by how many bytes that raised the peak."""
    before = memory("VmHWM")
    idx.data_facts(folder)
    idx.read_codes(folder, True, 32)
    print(memory("VmHWM") - before)


def test_flags_are_read_beside_the_images_that_are_there_now(photos):
    flags = ["--data_root", str(photos), "--fid_samples", "2", "--inception_weights", NONE]
    assert cgan.parse_flags(flags).n_classes == 10
    shutil.rmtree(photos / "3")
    assert cgan.parse_flags(flags).n_classes == 9


@pytest.mark.slow
def test_many_images_are_read_in_parts(tmp_path, digits):
    """Of 280,000 images there are 287 MB in the end, and never the 220 MB of their files beside them."""
    for names, n in zip(idx.FILES, (280000, 10000)):
        write_idx(tmp_path / names[0], [2051, n, 28, 28], np.tile(digits[0], (n // 10000, 1, 1)))
        write_idx(tmp_path / names[1], [2049, n], np.tile(digits[1], n // 10000))
    process = run(read_many, tmp_path)
    assert int(process.stdout) < 287e6 + 100e6, process.stderr
