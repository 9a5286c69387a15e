"""Times a whole training epoch of cgan.py beside the same experiment written plainly, in Jittor and in PyTorch.

    python -m benchmarks.epoch_time                 3 rounds of about 2 minutes on 2 cores
    python -m benchmarks.epoch_time --changes       the plain loop, and what each change adds to it

Every round runs, one after the other, each in a process of its own:

    plain       the report's loop as it is described: jittor.nn's Linear, Tanh and Adam, images transformed as they
                are read, two discriminator passes
    cgan        cgan.py itself
    pytorch     the plain loop in PyTorch, where it is installed, its images transformed beforehand, as cgan.py's are
    floor       what a step cannot do without: its matrix products alone, each in the fastest library at hand (oneDNN
                in Jittor, numpy, PyTorch), and moving once what Adam reads and writes (7 arrays of all parameters)

An epoch is timed after one that is not counted. Milliseconds a step: the epoch less an epoch of reading batches only.
The machine's speed drifts, so only figures of one round are compared: ratios are medians over the rounds.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

SECONDS, STEP = "s an epoch", "ms a step"


def time_epochs(train_epoch, batches):
    """Returns the figures of one kind. train_epoch(): trains an epoch; batches: what it reads, batch by batch."""
    train_epoch()
    start = time.perf_counter()
    train_epoch()
    seconds = time.perf_counter() - start
    return figures(seconds, batches)


def figures(seconds, batches):
    start = time.perf_counter()
    n_batches = sum(1 for _ in batches)
    loading = time.perf_counter() - start
    return {SECONDS: seconds, STEP: 1000 * (seconds - loading) / n_batches}


def plain(changes=0):
    """The plain loop, with the first `changes` of CHANGES."""
    import cgan
    from support.device import jt
    from support.mnist import MNIST

    images_once, fast_adam, fast_linear, one_pass = (i < changes for i in range(len(CHANGES)))
    nn = jt.nn
    Adam = cgan.Adam if fast_adam else nn.Adam
    cgan.Tanh = nn.Tanh
    if not fast_linear:
        cgan.Linear = nn.Linear
    generator, discriminator = cgan.Generator(), cgan.Discriminator()
    adversarial_loss = nn.MSELoss()
    optimizer_G = Adam(generator.parameters(), lr=0.0002, betas=(0.5, 0.999))
    optimizer_D = Adam(discriminator.parameters(), lr=0.0002, betas=(0.5, 0.999))
    dataloader = cgan.load_mnist(cgan.parse_flags([]), train=True)
    if not images_once:
        dataloader = MNIST(train=True, transform=dataloader.transform).set_attrs(batch_size=64, shuffle=True)

    def train_epoch():
        for real_images, labels in dataloader:
            batch_size = real_images.shape[0]
            valid, fake = jt.ones((batch_size, 1)), jt.zeros((batch_size, 1))
            gen_labels = jt.randint(0, 10, (batch_size,))
            gen_images = generator(jt.randn(batch_size, 100), gen_labels)
            g_loss = adversarial_loss(discriminator(gen_images, gen_labels), valid)
            optimizer_G.step(g_loss)
            if one_pass:
                images = jt.concat([real_images, gen_images.detach()])
                validity = discriminator(images, jt.concat([labels, gen_labels]))
                d_loss = adversarial_loss(validity, jt.concat([valid, fake]))
            else:
                real_loss = adversarial_loss(discriminator(real_images, labels), valid)
                fake_loss = adversarial_loss(discriminator(gen_images.detach(), gen_labels), fake)
                d_loss = (real_loss + fake_loss) / 2
            optimizer_D.step(d_loss)
            g_loss.item(), d_loss.item()

    return time_epochs(train_epoch, dataloader)


def cgan():
    import cgan

    with tempfile.TemporaryDirectory() as folder:
        never = ["--sample_interval", "1000000", "--fid_interval", "1000000"]
        opt = cgan.parse_flags(["--n_epochs", "2", "--output_dir", folder, *never])
        sys.stdout = open(os.devnull, "w")
        cgan.train(opt)
        sys.stdout = sys.__stdout__
        epochs = json.loads((Path(folder) / "results" / "log.json").read_text())["epochs"]
    return figures(epochs[-1]["seconds"], cgan.load_mnist(opt, train=True))


def pytorch():
    import torch
    from torch import nn

    import cgan

    class Generator(nn.Module):
        def __init__(self):
            super().__init__()
            self.label_embedding = nn.Embedding(10, 10)
            layers = [nn.Linear(110, 128), nn.LeakyReLU(0.2)]
            for n_in, n_out in ((128, 256), (256, 512), (512, 1024)):
                layers += [nn.Linear(n_in, n_out), nn.BatchNorm1d(n_out, 0.8), nn.LeakyReLU(0.2)]
            self.model = nn.Sequential(*layers, nn.Linear(1024, 1024), nn.Tanh())

        def forward(self, noise, labels):
            return self.model(torch.cat([self.label_embedding(labels), noise], 1)).reshape(-1, 1, 32, 32)

    class Discriminator(nn.Module):
        def __init__(self):
            super().__init__()
            self.label_embedding = nn.Embedding(10, 10)
            hidden = [nn.Linear(512, 512), nn.Dropout(0.4), nn.LeakyReLU(0.2)]
            more = [nn.Linear(512, 512), nn.Dropout(0.4), nn.LeakyReLU(0.2)]
            self.model = nn.Sequential(nn.Linear(1034, 512), nn.LeakyReLU(0.2), *hidden, *more, nn.Linear(512, 1))

        def forward(self, images, labels):
            return self.model(torch.cat([images.flatten(1), self.label_embedding(labels)], 1))

    torch.set_num_threads(os.cpu_count())
    data = cgan.load_mnist(cgan.parse_flags([]), train=True)
    images, labels = torch.from_numpy(data.images()), torch.from_numpy(data.mnist["labels"].astype(np.int64))
    generator, discriminator, adversarial_loss = Generator(), Discriminator(), nn.MSELoss()
    discriminator.eval()  # as in Jittor, see cgan.Discriminator
    optimizer_G = torch.optim.Adam(generator.parameters(), lr=0.0002, betas=(0.5, 0.999))
    optimizer_D = torch.optim.Adam(discriminator.parameters(), lr=0.0002, betas=(0.5, 0.999))

    def batches():
        for picked in torch.randperm(len(images)).split(64):
            yield images[picked], labels[picked]

    def train_epoch():
        for real_images, real_labels in batches():
            batch_size = len(real_images)
            valid, fake = torch.ones(batch_size, 1), torch.zeros(batch_size, 1)
            optimizer_G.zero_grad()
            gen_labels = torch.randint(0, 10, (batch_size,))
            gen_images = generator(torch.randn(batch_size, 100), gen_labels)
            g_loss = adversarial_loss(discriminator(gen_images, gen_labels), valid)
            g_loss.backward()
            optimizer_G.step()
            optimizer_D.zero_grad()
            real_loss = adversarial_loss(discriminator(real_images, real_labels), valid)
            fake_loss = adversarial_loss(discriminator(gen_images.detach(), gen_labels), fake)
            d_loss = (real_loss + fake_loss) / 2
            d_loss.backward()
            optimizer_D.step()
            g_loss.item(), d_loss.item()

    return time_epochs(train_epoch, batches())


def best_ms(function, runs=50):
    """Returns the milliseconds of the fastest of `runs` calls."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


def product_ms(rows, n_in, n_out):
    """Returns the milliseconds of (rows, n_in) x (n_in, n_out) in the fastest library at hand."""
    from support.device import jt

    a, b = np.ones((rows, n_in), np.float32), np.ones((n_in, n_out), np.float32)
    var_a, var_b = jt.array(a), jt.array(b)
    jt.sync_all()
    times = [best_ms(lambda: jt.matmul(var_a, var_b).sync()), best_ms(lambda: a @ b)]
    if importlib.util.find_spec("torch"):
        import torch

        tensor_a, tensor_b = torch.from_numpy(a), torch.from_numpy(b)
        times.append(best_ms(lambda: tensor_a @ tensor_b))
    return min(times)


def floor():
    generator = [(110, 128), (128, 256), (256, 512), (512, 1024), (1024, 1024)]
    discriminator = [(1034, 512), (512, 512), (512, 512), (512, 1)]

    def layers(shapes, rows, forward=True, weights=True, first=False):
        """Milliseconds of the products: forward, the weights' gradients, the inputs' (the `first` input's too)."""
        total = sum(product_ms(rows, n_in, n_out) for n_in, n_out in shapes if forward)
        total += sum(product_ms(n_out, rows, n_in) for n_in, n_out in shapes if weights)
        return total + sum(product_ms(rows, n_out, n_in) for n_in, n_out in (shapes if first else shapes[1:]))

    products = layers(generator, 64) + layers(discriminator, 64, weights=False, first=True) + layers(discriminator, 128)
    n_parameters = sum(n_in * n_out + n_out for n_in, n_out in generator + discriminator)
    # 7 arrays: parameters, both moments and gradients are read, the first three written. A copy moves two.
    halves = [(np.zeros(size, np.float32), np.ones(size, np.float32)) for size in [int(3.5 * n_parameters / 2)] * 2]
    with ThreadPoolExecutor(2) as pool:
        adam = best_ms(lambda: list(pool.map(lambda pair: np.copyto(*pair), halves)))
    return {SECONDS: None, STEP: products + adam, "products": products, "adam": adam}


KINDS = {"plain": plain, "cgan": cgan, "pytorch": pytorch, "floor": floor}
CHANGES = ["images transformed once", "Adam in one operator", "no large factor transposed", "one discriminator pass"]


def main():
    parser = argparse.ArgumentParser(description="Times an epoch of cgan.py beside plain loops.")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is run (default: 3)")
    parser.add_argument("--changes", action="store_true", help="what each change to the plain loop gains")
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    opt = parser.parse_args()
    if opt.kind:
        print(json.dumps(plain(int(opt.kind)) if opt.kind.isdigit() else KINDS[opt.kind]()))
        return
    kinds = [kind for kind in KINDS if kind != "pytorch" or importlib.util.find_spec("torch")]
    if opt.changes:
        kinds = [str(i) for i in range(len(CHANGES) + 1)]
    rounds = []
    for i in range(opt.rounds):
        rounds.append({})
        for kind in kinds:
            command = [sys.executable, "-m", "benchmarks.epoch_time", "--kind", kind]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
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
    print(
        f"\nfloor: products {median('floor', 'products'):.1f} ms, moving Adam's arrays {median('floor', 'adam'):.1f} ms"
    )


if __name__ == "__main__":
    main()
