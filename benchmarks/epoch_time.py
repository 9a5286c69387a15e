"""Times a training epoch of cgan.py beside the same experiment in other frameworks.

    python -m benchmarks.epoch_time                 3 rounds of about 4 minutes on 2 cores
    python -m benchmarks.epoch_time --changes       the report's loop in Jittor, and what each change adds to it

PyTorch and JAX are in requirements-bench.txt. They want another NumPy than Jittor, and so an environment of their own:

    python3 -m venv peers && peers/bin/pip install -r requirements-bench.txt
    python -m benchmarks.epoch_time --peers peers/bin/python

A row is left out where its package is missing. Every round runs, one after the other, each in a process of its own:

    plain               the report's loop as it is described, with jittor.nn, its images transformed as they are read
    cgan                cgan.py itself
    pytorch             the report's loop in PyTorch as people write it
    pytorch tuned       fused Adam, the discriminator frozen in the generator's step, one discriminator pass
    pytorch compiled    the same, with torch.compile
    jax                 every step compiled as a whole
    jax scan            an epoch in one compiled call; its losses are read when it has ended
    floor               what a step cannot do without: its matrix products alone, each in the fastest library at hand
                        (oneDNN in Jittor, numpy, PyTorch where it is beside Jittor) and orientation, and moving once
                        what Adam reads and writes (7 arrays of all parameters)

PyTorch and JAX have their images in memory, transformed, as cgan.py does. Judging the generated digits once, as cgan.py
does, made both slower here than one pass over real and generated images. An epoch is timed after one that is not
counted, or after a part of one where nothing is compiled; cgan.py's includes log and checkpoint. Milliseconds a step:
the epoch (cgan.py's without its checkpoint) less an epoch of reading batches only; JAX gathers its batches within a
step. The machine's speed drifts, so only figures of one round are compared: ratios are medians over the rounds.
"""

import argparse
import contextlib
import fcntl
import functools
import importlib.util
import itertools
import json
import os
import pty
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

SECONDS, STEP, SHARE = "s an epoch", "ms a step", "epoch to its steps"
WARM_UP = 100  # batches
EXPERIMENT = "EPOCH_TIME_EXPERIMENT"  # in the environment: the file that save_experiment wrote


def time_epochs(train, batches, warm_up=WARM_UP):
    """Returns the figures of one kind.

    train(batches): a step for each; batches(): an epoch's; warm_up: how many are not counted before (None: an epoch).
    """
    train(itertools.islice(batches(), warm_up))
    start = time.perf_counter()
    train(batches())
    return figures(time.perf_counter() - start, batches())


def figures(seconds, batches, whole_epoch=None):
    start = time.perf_counter()
    n_batches = sum(1 for _ in batches)
    loading = time.perf_counter() - start
    seconds_a_step = (seconds - loading) / n_batches
    whole_epoch = whole_epoch or seconds
    return {SECONDS: whole_epoch, STEP: 1000 * seconds_a_step, SHARE: whole_epoch / (n_batches * seconds_a_step)}


def default_flags():
    import cgan

    with tempfile.TemporaryDirectory() as folder:
        return cgan.parse_flags(["--output_dir", folder])


def networks(opt):
    import cgan

    generator = cgan.Generator(opt.latent_dim, opt.n_classes, opt.img_size)
    return generator, cgan.Discriminator(opt.n_classes, opt.img_size, opt.hidden_d)


def plain(changes=0, measure=time_epochs):
    """The report's loop, with the first `changes` of CHANGES. measure: is given it as time_epochs is."""
    import cgan
    from benchmarks.plain import Sequential
    from support.device import jt
    from support.mnist import MNIST, load_mnist

    opt = default_flags()
    images_once, fast_adam, fast_layers, judge_once = (i < changes for i in range(len(CHANGES)))
    nn = jt.nn
    Adam = cgan.Adam if fast_adam else nn.Adam
    if not fast_layers:
        cgan.Sequential, cgan.Tanh = Sequential, nn.Tanh
    generator, discriminator = networks(opt)
    adversarial_loss = nn.MSELoss()
    optimizer_G = Adam(generator.parameters(), lr=opt.lr, betas=(opt.b1, opt.b2))
    optimizer_D = Adam(discriminator.parameters(), lr=opt.lr, betas=(opt.b1, opt.b2))
    dataloader = load_mnist(True)
    if not images_once:
        dataloader = MNIST(train=True, transform=dataloader.transform)
    dataloader.set_attrs(batch_size=opt.batch_size, shuffle=True)

    def train(batches):
        for real_images, labels in batches:
            batch_size = real_images.shape[0]
            valid, fake = jt.ones((batch_size, 1)), jt.zeros((batch_size, 1))
            gen_labels = jt.randint(0, opt.n_classes, (batch_size,))
            gen_images = generator(jt.randn(batch_size, opt.latent_dim), gen_labels)
            validity = discriminator(gen_images, gen_labels)
            g_loss = adversarial_loss(validity, valid)
            optimizer_G.step(g_loss, retain_graph=judge_once)
            real_loss = adversarial_loss(discriminator(real_images, labels), valid)
            if not judge_once:
                validity = discriminator(gen_images.detach(), gen_labels)
            fake_loss = adversarial_loss(validity, fake)
            d_loss = (real_loss + fake_loss) / 2
            optimizer_D.step(d_loss)
            g_loss.item(), d_loss.item()

    return measure(train, lambda: dataloader)


@contextlib.contextmanager
def terminal():
    """Makes standard error a terminal, where the progress bar is shown, and reads what comes."""
    saved, (far, near) = os.dup(2), pty.openpty()  # near stays open, or the reader would end in an error
    fcntl.ioctl(near, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))  # a new one has no width
    os.dup2(near, 2)
    reader = threading.Thread(target=lambda: list(iter(lambda: os.read(far, 65536), b"")), daemon=True)
    reader.start()
    try:
        yield
    finally:
        os.dup2(saved, 2)


def cgan():
    import cgan
    from support.mnist import load_mnist

    saved, replace = [], os.replace

    def watched(source, target):
        replace(source, target)
        if os.path.basename(target) == "log.json":
            saved.append(time.perf_counter())

    os.replace = watched
    with tempfile.TemporaryDirectory() as folder:
        never = ["--sample_interval", "1000000", "--fid_interval", "1000000"]
        # An evaluation follows the last epoch; the one before it is timed
        opt = cgan.parse_flags(["--n_epochs", "3", "--output_dir", folder, *never])
        with terminal(), open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
            cgan.train(opt)
        epochs = json.loads((Path(folder) / "results" / "log.json").read_text())["epochs"]
    dataloader = load_mnist(True).set_attrs(batch_size=opt.batch_size, shuffle=True)
    return figures(epochs[1]["seconds"], dataloader, saved[1] - saved[0])


def save_experiment(path):
    """Writes what frameworks without Jittor beside them need: MNIST's training set and the sizes of the layers."""
    from support.device import jt
    from support.mnist import load_mnist

    images, labels = load_mnist(True).arrays()
    sizes = {}
    for network in networks(default_flags()):
        shapes = [layer.weight.shape for layer in network.model if isinstance(layer, jt.nn.Linear)]
        sizes[type(network).__name__] = [shapes[0][1], *(n_out for n_out, _ in shapes)]
    np.savez(path, images=images, labels=labels.astype(np.int64), **sizes)


def read_mnist():
    """Returns MNIST's training set as arrays: images (60000, 1, 32, 32) in [-1, 1], labels (60000,)."""
    with np.load(os.environ[EXPERIMENT]) as arrays:
        return arrays["images"], arrays["labels"]


def read_layers():
    """Returns [(n_in, n_out) of every linear layer] of the generator and of the discriminator."""
    with np.load(os.environ[EXPERIMENT]) as arrays:
        sizes = [arrays[name].tolist() for name in ("Generator", "Discriminator")]
    return [list(zip(widths, widths[1:])) for widths in sizes]


def pytorch(tuned=False, compiled=False):
    """The loop as people write it; tuned: fused Adam, discriminator frozen in the generator's step, one pass."""
    import torch
    from torch import nn

    of_generator, of_discriminator = read_layers()

    class Generator(nn.Module):
        def __init__(self):
            super().__init__()
            self.label_embedding = nn.Embedding(10, 10)
            first, *hidden, last = of_generator
            layers = [nn.Linear(*first), nn.LeakyReLU(0.2)]
            for n_in, n_out in hidden:
                layers += [nn.Linear(n_in, n_out), nn.BatchNorm1d(n_out, 0.8), nn.LeakyReLU(0.2)]
            self.model = nn.Sequential(*layers, nn.Linear(*last), nn.Tanh())

        def forward(self, noise, labels):
            return self.model(torch.cat([self.label_embedding(labels), noise], 1)).reshape(-1, 1, 32, 32)

    class Discriminator(nn.Module):
        def __init__(self):
            super().__init__()
            self.label_embedding = nn.Embedding(10, 10)
            first, *hidden, last = of_discriminator
            layers = [nn.Linear(*first), nn.LeakyReLU(0.2)]
            for n_in, n_out in hidden:
                layers += [nn.Linear(n_in, n_out), nn.Dropout(0.4), nn.LeakyReLU(0.2)]
            self.model = nn.Sequential(*layers, nn.Linear(*last))

        def forward(self, images, labels):
            return self.model(torch.cat([images.flatten(1), self.label_embedding(labels)], 1))

    torch.set_num_threads(os.cpu_count())
    images, labels = map(torch.from_numpy, read_mnist())
    generator, discriminator, adversarial_loss = Generator(), Discriminator(), nn.MSELoss()
    discriminator.eval()  # as in Jittor, see cgan.Discriminator
    settings = {"lr": 0.0002, "betas": (0.5, 0.999), "fused": tuned or None}
    optimizer_G = torch.optim.Adam(generator.parameters(), **settings)
    optimizer_D = torch.optim.Adam(discriminator.parameters(), **settings)
    if compiled:
        generator, discriminator = torch.compile(generator), torch.compile(discriminator)

    def batches():
        for picked in torch.randperm(len(images)).split(64):
            yield images[picked], labels[picked]

    def train(batches):
        for real_images, real_labels in batches:
            batch_size = len(real_images)
            valid, fake = torch.ones(batch_size, 1), torch.zeros(batch_size, 1)
            optimizer_G.zero_grad()
            if tuned:
                discriminator.requires_grad_(False)
            gen_labels = torch.randint(0, 10, (batch_size,))
            gen_images = generator(torch.randn(batch_size, 100), gen_labels)
            g_loss = adversarial_loss(discriminator(gen_images, gen_labels), valid)
            g_loss.backward()
            optimizer_G.step()
            optimizer_D.zero_grad()
            if tuned:
                discriminator.requires_grad_(True)
                both = torch.cat([real_images, gen_images.detach()])
                validity = discriminator(both, torch.cat([real_labels, gen_labels]))
                d_loss = adversarial_loss(validity, torch.cat([valid, fake]))
            else:
                real_loss = adversarial_loss(discriminator(real_images, real_labels), valid)
                fake_loss = adversarial_loss(discriminator(gen_images.detach(), gen_labels), fake)
                d_loss = (real_loss + fake_loss) / 2
            d_loss.backward()
            optimizer_D.step()
            g_loss.item(), d_loss.item()

    return time_epochs(train, batches, None if compiled else WARM_UP)


def jax(scan=False):
    """The loop in JAX, each step compiled as a whole; scan: the epoch's full batches in one compiled call."""
    import jax
    from jax import numpy as jnp

    def layer(key, n_in, n_out):
        bound = n_in**-0.5
        weight = jax.random.uniform(key, (n_in, n_out), minval=-bound, maxval=bound)
        return {"weight": weight, "bias": jnp.zeros(n_out)}

    def norm(n):
        return {"scale": jnp.ones(n), "shift": jnp.zeros(n)}

    def generate(network, statistics, noise, labels):
        """Returns images, and the running statistics moved on."""
        x, moved = jnp.concatenate([network["embedding"][labels], noise], 1), []
        for i, linear in enumerate(network["linear"]):
            x = x @ linear["weight"] + linear["bias"]
            if 1 <= i <= len(statistics):
                mean, var = x.mean(0), x.var(0)
                moved.append([0.9 * old + 0.1 * new for old, new in zip(statistics[i - 1], (mean, var))])
                x = (x - mean) / jnp.sqrt(var + 0.8) * network["norm"][i - 1]["scale"] + network["norm"][i - 1]["shift"]
            x = jnp.tanh(x) if i > len(statistics) else jax.nn.leaky_relu(x, 0.2)
        return x, moved

    def judge(network, images, labels):
        x = jnp.concatenate([images, network["embedding"][labels]], 1)
        for linear in network["linear"][:-1]:
            x = jax.nn.leaky_relu(x @ linear["weight"] + linear["bias"], 0.2)
        return x @ network["linear"][-1]["weight"] + network["linear"][-1]["bias"]

    def adam(network, gradients, moments, n_step):
        m = jax.tree_util.tree_map(lambda m, g: 0.5 * m + 0.5 * g, moments[0], gradients)
        v = jax.tree_util.tree_map(lambda v, g: 0.999 * v + 0.001 * g * g, moments[1], gradients)
        size = 0.0002 * jnp.sqrt(1 - 0.999**n_step) / (1 - 0.5**n_step)
        moved = jax.tree_util.tree_map(lambda p, m, v: p - size * m / (jnp.sqrt(v) + 1e-8), network, m, v)
        return moved, (m, v)

    def step(images, real_labels, state, batch):
        generator, statistics, moments_g, discriminator, moments_d, n_step, key = state
        real_batch, labels = images[batch], real_labels[batch]
        key, key_noise, key_labels = jax.random.split(key, 3)
        noise = jax.random.normal(key_noise, (len(batch), 100))
        gen_labels = jax.random.randint(key_labels, (len(batch),), 0, 10)

        def loss_g(generator):
            gen_images, moved = generate(generator, statistics, noise, gen_labels)
            return ((judge(discriminator, gen_images, gen_labels) - 1) ** 2).mean(), (gen_images, moved)

        def loss_d(discriminator):
            both = jnp.concatenate([real_batch, gen_images])
            validity = judge(discriminator, both, jnp.concatenate([labels, gen_labels]))
            return ((validity - jnp.repeat(jnp.float32([1, 0]), len(batch))[:, None]) ** 2).mean()

        (g_loss, (gen_images, statistics)), gradients = jax.value_and_grad(loss_g, has_aux=True)(generator)
        d_loss, gradients_d = jax.value_and_grad(loss_d)(discriminator)
        generator, moments_g = adam(generator, gradients, moments_g, n_step)
        discriminator, moments_d = adam(discriminator, gradients_d, moments_d, n_step)
        return (generator, statistics, moments_g, discriminator, moments_d, n_step + 1, key), (g_loss, d_loss)

    images, real_labels = read_mnist()
    images, real_labels = jnp.asarray(images.reshape(len(images), -1)), jnp.asarray(real_labels)
    keys = iter(jax.random.split(jax.random.PRNGKey(0), 20))
    networks, layers = [], read_layers()
    for sizes in layers:
        linear = [layer(next(keys), *pair) for pair in sizes]
        networks.append({"embedding": jax.random.normal(next(keys), (10, 10)), "linear": linear})
    normalised = [n_out for _, n_out in layers[0][1:-1]]
    networks[0]["norm"] = [norm(n) for n in normalised]
    statistics = [[jnp.zeros(n), jnp.ones(n)] for n in normalised]
    moments = [tuple(jax.tree_util.tree_map(jnp.zeros_like, network) for _ in range(2)) for network in networks]
    state = (networks[0], statistics, moments[0], networks[1], moments[1], jnp.float32(1), next(keys))
    one_step = jax.jit(step, donate_argnums=2)

    @functools.partial(jax.jit, donate_argnums=2)
    def all_steps(images, real_labels, state, batches):
        return jax.lax.scan(functools.partial(step, images, real_labels), state, batches)

    def batches():
        order = np.random.permutation(len(images))
        yield from (order[start : start + 64] for start in range(0, len(order), 64))

    def train(batches):
        nonlocal state
        batches = list(batches)
        if scan:
            full = np.stack([batch for batch in batches if len(batch) == 64])
            state, losses = all_steps(images, real_labels, state, full)
            np.asarray(losses)
            batches = batches[len(full) :]
        for batch in batches:
            state, losses = one_step(images, real_labels, state, batch)
            [float(loss) for loss in losses]

    return time_epochs(train, batches, warm_up=None)


def median_ms(function, runs=50):
    """Returns the median milliseconds of a call."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def product_times(rows, n_in, n_out):
    """Returns the milliseconds of (rows, n_in) x (n_in, n_out) in every library at hand."""
    from support.device import jt

    a, b = np.ones((rows, n_in), np.float32), np.ones((n_in, n_out), np.float32)
    var_a, var_b = jt.array(a), jt.array(b)
    jt.sync_all()
    times = [median_ms(lambda: jt.matmul(var_a, var_b).sync()), median_ms(lambda: a @ b)]
    if importlib.util.find_spec("torch"):
        import torch

        tensor_a, tensor_b = torch.from_numpy(a), torch.from_numpy(b)
        times.append(median_ms(lambda: tensor_a @ tensor_b))
    return times


def product_ms(rows, n_in, n_out):
    """Returns the milliseconds of the product, or of its transpose, where it is fastest."""
    return min(product_times(rows, n_in, n_out) + product_times(n_out, n_in, rows))


def floor():
    os.environ.setdefault("GOMP_SPINCOUNT", "300000")  # as without support/device.py: the libraries at their best
    generator, discriminator = read_layers()

    def layers(shapes, rows):
        """Milliseconds of the products: forward, the weights' gradients, the inputs' but for the first layer."""
        total = sum(product_ms(rows, n_in, n_out) + product_ms(n_out, rows, n_in) for n_in, n_out in shapes)
        return total + sum(product_ms(rows, n_out, n_in) for n_in, n_out in shapes[1:])

    # The discriminator's gradients of generated digits, from one output an image, are proportional for both losses
    products = layers(generator, 64) + layers(discriminator, 128) + product_ms(64, *discriminator[0][::-1])
    n_parameters = sum(n_in * n_out + n_out for n_in, n_out in generator + discriminator)
    # 7 arrays: parameters, both moments and gradients are read, the first three written. A copy moves two.
    halves = [(np.zeros(size, np.float32), np.ones(size, np.float32)) for size in [int(3.5 * n_parameters / 2)] * 2]
    with ThreadPoolExecutor(2) as pool:
        adam = median_ms(lambda: list(pool.map(lambda pair: np.copyto(*pair), halves)))
    return {SECONDS: None, STEP: products + adam, "products": products, "adam": adam}


KINDS = {
    "plain": plain,
    "cgan": cgan,
    "pytorch": pytorch,
    "pytorch tuned": functools.partial(pytorch, tuned=True),
    "pytorch compiled": functools.partial(pytorch, tuned=True, compiled=True),
    "jax": jax,
    "jax scan": functools.partial(jax, scan=True),
    "floor": floor,
}
PACKAGES = {"pytorch": "torch", "jax": "jax"}  # that a kind's first word asks for
CHANGES = ["images transformed once", "Adam in one operator", "layers in one operator", "generated digits judged once"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often each is run (default: 3)")
    parser.add_argument("--changes", action="store_true", help="what each change to the plain loop gains")
    parser.add_argument("--peers", default=sys.executable, metavar="PYTHON", help="the Python that has PyTorch and JAX")
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    opt = parser.parse_args()
    if opt.kind:
        print(json.dumps(plain(int(opt.kind)) if opt.kind.isdigit() else KINDS[opt.kind]()))
        return
    pythons = {}
    for kind in [str(i) for i in range(len(CHANGES) + 1)] if opt.changes else KINDS:
        package = PACKAGES.get(kind.split()[0])
        pythons[kind] = opt.peers if package else sys.executable
        if package and subprocess.run([opt.peers, "-c", f"import {package}"], stderr=subprocess.DEVNULL).returncode:
            print(f"{kind} is left out: {opt.peers} has no {package}, see --help", file=sys.stderr)
            del pythons[kind]
    kinds, rounds = list(pythons), []
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, EXPERIMENT: os.path.join(folder, "experiment.npz")}
        if not opt.changes:
            save = "import sys; from benchmarks import epoch_time; epoch_time.save_experiment(sys.argv[1])"
            subprocess.run([sys.executable, "-c", save, environment[EXPERIMENT]], check=True)
        for i in range(opt.rounds):
            rounds.append({})
            for kind, python in pythons.items():
                command = [python, "-m", "benchmarks.epoch_time", "--kind", kind]
                output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
                rounds[-1][kind] = json.loads(output.splitlines()[-1])
                print(f"round {i + 1}: {kind} {rounds[-1][kind]}", file=sys.stderr, flush=True)

    def median(kind, figure):
        return statistics.median(row[kind][figure] for row in rounds)

    def ratio(kind, other, figure):
        return statistics.median(row[kind][figure] / row[other][figure] for row in rounds)

    print(f"{os.cpu_count()} cores, medians of {opt.rounds} rounds\n")
    if opt.changes:
        print(f"| | {SECONDS} | to the plain loop |\n| --- | --- | --- |")
        for kind, name in zip(kinds, ["plain loop", *(f"+ {change}" for change in CHANGES)]):
            print(f"| {name} | {median(kind, SECONDS):.1f} | {ratio(kind, '0', SECONDS):.2f} |")
        return
    print(f"| | {SECONDS} | {STEP} | cgan.py's epoch to this | its step to this |\n| --- | --- | --- | --- | --- |")
    for kind in kinds:
        epoch = (
            ("-", "-") if kind == "floor" else (f"{median(kind, SECONDS):.1f}", f"{ratio('cgan', kind, SECONDS):.2f}")
        )
        print(f"| {kind} | {epoch[0]} | {median(kind, STEP):.1f} | {epoch[1]} | {ratio('cgan', kind, STEP):.2f} |")
    parts = {name: f"{median('floor', name):.1f} ms" for name in ("products", "adam")}
    print(f"\nfloor: products {parts['products']}, moving Adam's arrays {parts['adam']}")
    print(f"cgan.py's epoch, with loader, progress bar and checkpoint, to its steps: {median('cgan', SHARE):.2f}")


if __name__ == "__main__":
    main()
