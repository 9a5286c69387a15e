"""The networks are the report's, layer by layer."""

import numpy as np
import pytest

from cgan import Discriminator, Generator
from support.device import jt, set_seed
from support.pages.networks import describe_layers


@pytest.fixture(autouse=True)
def seed():
    set_seed(0)


def shapes(linears, norms=()):
    """Returns {parameter: shape} of a network with these linear layers, {number: (n_out, n_in)}."""
    found = {"label_embedding.weight": (10, 10)}
    for i, shape in linears.items():
        found.update({f"model.{i}.weight": shape, f"model.{i}.bias": shape[:1]})
    for i in norms:
        names = ("weight", "bias", "running_mean", "running_var")
        found.update({f"model.{i}.{name}": linears[i - 1][:1] for name in names})
    return found


@pytest.mark.parametrize(
    "network, expected",
    [
        (
            lambda: Generator(100, 10, 32),
            shapes({0: (128, 110), 2: (256, 128), 5: (512, 256), 8: (1024, 512), 11: (1024, 1024)}, norms=(3, 6, 9)),
        ),
        (lambda: Discriminator(10, 32, 512), shapes({0: (512, 1034), 2: (512, 512), 5: (512, 512), 8: (1, 512)})),
    ],
    ids=["generator", "discriminator"],
)
def test_networks_have_the_reports_shapes(network, expected):
    assert {name: tuple(value.shape) for name, value in network().state_dict().items()} == expected


def test_layers_stand_in_the_reports_order():
    linear, leaky_relu, dropout = {"kind": "Linear"}, {"kind": "leaky_relu", "scale": 0.2}, {"kind": "Dropout"}
    block, discriminator = [linear, {"kind": "BatchNorm", "eps": 0.8}, leaky_relu], Discriminator(10, 32, 512)
    assert describe_layers(Generator(100, 10, 32)) == [linear, leaky_relu, *3 * block, linear, {"kind": "Tanh"}]
    assert describe_layers(discriminator) == [linear, leaky_relu, *2 * [linear, dropout, leaky_relu], linear]
    assert {layer.p for layer in discriminator.model if type(layer).__name__ == "Dropout"} == {0.4}


@pytest.mark.parametrize("img_size", [28, 32])
def test_images_have_their_size_and_tanhs_range(img_size):
    images = Generator(100, 10, img_size)(10 * jt.randn(64, 100), jt.randint(0, 10, (64,))).numpy()
    assert images.shape == (64, 1, img_size, img_size)
    assert -1 <= images.min() < 0 < images.max() <= 1


def test_validity_is_one_unbounded_number_an_image_and_dropout_off_in_evaluation_mode():
    discriminator, images, labels = Discriminator(10, 32, 512), 1e4 * jt.randn(64, 1, 32, 32), jt.randint(0, 10, (64,))
    discriminator.train()
    assert (discriminator(images, labels).numpy() != discriminator(images, labels).numpy()).any()
    discriminator.eval()
    validity = discriminator(images, labels).numpy()
    assert validity.shape == (64, 1) and np.abs(validity).max() > 1
    np.testing.assert_array_equal(discriminator(images, labels).numpy(), validity)
    for parameter in discriminator.model[8].parameters():
        parameter.assign(-parameter)
    np.testing.assert_allclose(discriminator(images, labels).numpy(), -validity, rtol=1e-6)  # nothing follows it


def test_batch_normalisation_is_off_in_evaluation_mode():
    generator, noise, labels = Generator(100, 10, 32), jt.randn(8, 100), jt.arange(8)
    generator.train()
    generator(noise, labels).sync()
    alone, together = generator(noise[:2], labels[:2]).numpy(), generator(noise, labels).numpy()[:2]
    assert np.abs(alone - together).max() > 1e-3  # in training mode an image depends on its batch
    generator.eval()
    before = {name: value.numpy().copy() for name, value in generator.state_dict().items()}
    alone, together = generator(noise[:2], labels[:2]).numpy(), generator(noise, labels).numpy()[:2]
    np.testing.assert_allclose(alone, together, atol=1e-5)
    for name, value in generator.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name], err_msg=name)


def test_labels_matter():
    generator, discriminator = Generator(100, 10, 32), Discriminator(10, 32, 512)
    generator.eval()
    discriminator.eval()
    noise = jt.randn(1, 100)
    three, seven = jt.array([3]), jt.array([7])
    image = generator(noise, three)
    assert np.abs(image.numpy() - generator(noise, seven).numpy()).max() > 1e-3
    assert abs(discriminator(image, three).item() - discriminator(image, seven).item()) > 1e-6
