"""What is written for speed computes what the plain form computes, and stays within its memory."""

import numpy as np
import pytest
from conftest import ROOT, run

import cgan
from support import fast_cpu
from support.device import jt


def test_adam_is_jittors_adam():
    """50 steps of the whole generator on the same gradients."""
    noise, labels = jt.randn(64, 100), jt.randint(0, 10, (64,))
    generators = [cgan.Generator() for _ in range(2)]
    generators[1].load_state_dict({name: value.numpy() for name, value in generators[0].state_dict().items()})
    optimizers = [
        kind(generator.parameters(), lr=0.0002, betas=(0.5, 0.999))
        for kind, generator in zip((jt.nn.Adam, fast_cpu.Adam), generators)
    ]
    targets = jt.rand(64, 1, 32, 32)
    for _ in range(50):
        optimizers[0].backward(((generators[0](noise, labels) - targets) ** 2).mean())
        gradients = optimizers[0].param_groups[0]["grads"]
        optimizers[1].backward(sum((p * g.detach()).sum() for p, g in zip(generators[1].parameters(), gradients)))
        for optimizer in optimizers:
            optimizer.step()
    assert optimizers[0].n_step == optimizers[1].n_step == 50
    for ours, theirs in zip(generators[1].parameters(), generators[0].parameters()):
        assert ours.requires_grad == theirs.requires_grad
        if ours.requires_grad:  # a running statistic moves with the passes, which only one of the two makes
            assert np.abs(ours.numpy() - theirs.numpy()).max() < 1e-6
    for moments in ("m", "values"):
        for ours, theirs in zip(*(optimizer.param_groups[0][moments] for optimizer in reversed(optimizers))):
            np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("n, n_in, n_out", [(64, 1034, 512), (1, 7, 3), (128, 512, 1)])
def test_linear_is_jittors_linear(n, n_in, n_out):
    plain, fast, x = jt.nn.Linear(n_in, n_out), fast_cpu.Linear(n_in, n_out), jt.randn(n, n_in)
    fast.load_state_dict({name: value.numpy() for name, value in plain.state_dict().items()})
    weighting = jt.randn(n, n_out)
    results = []
    for layer in (plain, fast):
        y = layer(x)
        results.append([y, *jt.grad((y * weighting).sum(), [x, layer.weight, layer.bias])])
    for ours, theirs in zip(*reversed(results)):
        scale = np.abs(theirs.numpy()).max()
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-6, atol=1e-6 * scale)


def test_tanh_and_its_gradient_are_right_for_any_number():
    values = np.float32([-1e30, -200, -46, -44, -3, -0.5, 0, 1e-20, 0.5, 3, 44, 46, 200, 1e30] * 8)
    x = jt.array(values)
    y = fast_cpu.Tanh()(x)
    np.testing.assert_allclose(y.numpy(), np.tanh(values), rtol=1e-5)
    gradient = jt.grad((3 * y).sum(), x).numpy()
    np.testing.assert_allclose(gradient, 3 / np.cosh(np.clip(values.astype(float), -99, 99)) ** 2, rtol=1e-5, atol=1e-6)


def test_one_discriminator_pass_equals_two():
    """Loss and gradients, without dropout, whose random numbers would differ."""
    discriminator, loss = cgan.Discriminator(), jt.nn.MSELoss()
    discriminator.eval()
    real, generated, valid, fake = jt.rand(64, 1, 32, 32), jt.rand(64, 1, 32, 32), jt.ones((64, 1)), jt.zeros((64, 1))
    labels, gen_labels = jt.randint(0, 10, (64,)), jt.randint(0, 10, (64,))
    two = (loss(discriminator(real, labels), valid) + loss(discriminator(generated, gen_labels), fake)) / 2
    validity = discriminator(jt.concat([real, generated]), jt.concat([labels, gen_labels]))
    one = loss(validity, jt.concat([valid, fake]))
    assert one.item() == pytest.approx(two.item(), rel=1e-6)
    for a, b in zip(jt.grad(one, discriminator.parameters()), jt.grad(two, discriminator.parameters())):
        scale = np.abs(b.numpy()).max()
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-6, atol=1e-6 * scale)


@pytest.mark.parametrize("img_size", [32, 20])
def test_images_are_what_jittors_loader_gives(img_size):
    ours = cgan.load_mnist(cgan.parse_flags(["--img_size", str(img_size)]), train=False)
    theirs = cgan.TransformedMNIST.__base__(train=False, transform=ours.transform)
    assert ours.images().shape == (10000, 1, img_size, img_size) and ours.codes.nbytes == 10000 * img_size**2
    for i in range(0, 10000, 97):
        for a, b in zip(ours[i], theirs[i]):
            np.testing.assert_array_equal(a, b)


def test_memory(tmp_path):
    """Peak below 1.2 GB, and no growth from epoch 2 to epoch 20."""
    code = (
        "import resource, cgan\n"
        "def resident():\n"
        "    return int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize() // 2**20\n"
        "save = cgan.checkpoint.save_log\n"
        "def watched(*args): save(*args); print('MB', resident())\n"
        "cgan.checkpoint.save_log = watched\n"
        "cgan.train(cgan.parse_flags('--n_epochs 20 --max_batches 50 --fid_interval 5 --output_dir'.split() + ['.']))\n"
        "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    )
    process = run("-c", code, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert process.returncode == 0, process.stderr
    values = [int(line.split()[1]) for line in process.stdout.splitlines() if line.startswith(("MB", "peak"))]
    *resident, peak = values
    assert len(resident) == 20 and peak < 1200
    assert resident[19] - resident[5] <= 10  # MB; the first evaluation, after epoch 5, brings buffers that stay
