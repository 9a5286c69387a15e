"""The rows of benchmarks/epoch_time.py in Jittor, which answer as timing.py asks, and the profile of a step.

python -m benchmarks.jittor_rows '{"name": "plain|cgan|floor|scores|NUMBER OF CHANGES"}'        a Row of timing.py
python -m benchmarks.jittor_rows profile
"""

import itertools
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from timeit import repeat

import numpy as np

import cgan
import fid
from benchmarks.common import show
from benchmarks.plain import JITTORS_OWN
from benchmarks.timing import (
    CHANGES,
    EVALUATION,
    INCEPTION,
    PEAK,
    STEP,
    WARM_UP,
    Row,
    answers,
    best_of_two,
    measured,
    peak,
    time_epochs,
)
from support import limits
from support.device import jt, nn
from support.evaluation import Evaluation
from support.mnist import MNIST
from support.runs import run

PROFILED = 500  # steps


def networks(opt):
    return cgan.make_generator(opt), cgan.Discriminator(opt.n_classes, opt.img_size, opt.hidden_d)


def training(changes):
    """Returns (a function that trains on batches, the data loader): the plain loop with the first `changes`."""
    images_once, fast_adam, fast_layers = (i < changes for i in range(len(CHANGES)))
    own = [*["Adam"] * (not fast_adam), *["FusedSequential", "Tanh"] * (not fast_layers)]
    vars(cgan).update({name: JITTORS_OWN[name] for name in own})
    opt = cgan.parse_flags([])
    generator, discriminator = networks(opt)
    optimizer_G, optimizer_D = (
        cgan.Adam(network.parameters(), lr=opt.lr, betas=(opt.b1, opt.b2)) for network in (generator, discriminator)
    )
    dataloader = cgan.load_data(opt, train=True)
    if not images_once:
        dataloader = MNIST(train=True, transform=dataloader.transform)
        dataloader.set_attrs(batch_size=opt.batch_size, shuffle=True)

    def train(batches):
        for batch in batches:
            losses = cgan.training_step(opt, generator, discriminator, optimizer_G, optimizer_D, *batch)
            [loss.item() for loss in losses.values()]

    return train, dataloader


def wide_generator(width, opt):
    """Returns cgan.py's generator with hidden layers `width` times as wide."""
    generator = cgan.Generator(opt.latent_dim, opt.n_classes, opt.img_size)
    layers = list(generator.model)
    for i, layer in enumerate(layers):
        if isinstance(layer, nn.Linear):
            n_out, n_in = layer.weight.shape
            layers[i] = nn.Linear(n_in * (width if i else 1), n_out * (width if i < len(layers) - 2 else 1))
        elif isinstance(layer, nn.BatchNorm1d):
            layers[i] = nn.BatchNorm1d(layer.num_features * width, eps=layer.eps)
    generator.model = cgan.FusedSequential(*layers)
    return generator


def whole_program(row, answer):
    """Answers with epochs of cgan.py, the first for warmth."""
    epochs, batches = run.Run.epochs, run.Run.batches
    trained, loader = None, None

    def timed_batches(self, dataloader):
        nonlocal trained, loader
        start, loader = time.perf_counter(), dataloader
        yield from batches(self, dataloader)
        trained = time.perf_counter() - start

    def timed_epochs(self):
        start = None
        for epoch in epochs(self):
            if epoch > 1:
                whole = time.perf_counter() - start
                answer(measured(trained, itertools.islice(loader, row.steps), whole) if epoch > 2 else {})
            start = time.perf_counter()
            yield epoch

    run.Run.epochs, run.Run.batches = timed_epochs, timed_batches
    flags = "--n_epochs 1000000 --sample_interval 1000000000 --fid_interval 1000000 --inception_weights none"
    opt = cgan.parse_flags(flags.split())
    opt.batch_size, opt.max_batches, opt.hidden_d = row.batch_size, row.steps, opt.hidden_d * row.width
    cgan.make_generator = partial(wide_generator, row.width)
    with tempfile.TemporaryDirectory() as opt.output_dir:
        cgan.train(opt)


def layer_sizes():
    """Returns {network: [n_in, n_out, ... of its linear layers]}."""
    sizes = {}
    for network in networks(cgan.parse_flags([])):
        shapes = [layer.weight.shape for layer in network.model if isinstance(layer, nn.Linear)]
        sizes[type(network).__name__] = [shapes[0][1], *(n_out for n_out, _ in shapes)]
    return sizes


def save_experiment(path):
    """Writes what benchmarks/peer_rows.py needs: MNIST's training set and the sizes of the layers."""
    images, labels = cgan.load_data(cgan.parse_flags([]), train=True).arrays()
    np.savez(path, images=images.reshape(len(images), -1), labels=labels.astype(np.int64), **layer_sizes())


def median_ms(function):
    return 1000 * statistics.median(repeat(function, number=1, repeat=50))


def product_ms(rows, n_in, n_out):
    """Returns the milliseconds of (rows, n_in) x (n_in, n_out), or its transpose, in the faster of two libraries."""
    times = []
    for n, inner, m in ((rows, n_in, n_out), (n_out, n_in, rows)):
        a, b = np.ones((n, inner), np.float32), np.ones((inner, m), np.float32)
        var_a, var_b = jt.array(a), jt.array(b)
        jt.sync_all()
        times += [median_ms(lambda: jt.matmul(var_a, var_b).sync()), median_ms(lambda: a @ b)]  # noqa: B023
    return min(times)


def floor(_, answer):
    generator, discriminator = (list(zip(sizes, sizes[1:])) for sizes in layer_sizes().values())

    def layers(shapes, rows):
        """Milliseconds of the products: forward, the weights' gradients, the inputs' but for the first layer."""
        total = sum(product_ms(rows, n_in, n_out) + product_ms(n_out, rows, n_in) for n_in, n_out in shapes)
        return total + sum(product_ms(rows, n_out, n_in) for n_in, n_out in shapes[1:])

    n_parameters = sum(n_in * n_out + n_out for n_in, n_out in generator + discriminator)
    # 7 arrays: parameters, both moments and gradients are read, the first three written. A copy moves two.
    sizes = [int(3.5 * n_parameters / limits.cores())] * limits.cores()
    parts = [(np.zeros(size, np.float32), np.ones(size, np.float32)) for size in sizes]
    answer({})
    while True:
        # The discriminator's gradients of generated digits, from one output an image, are proportional for both losses
        products = layers(generator, 64) + layers(discriminator, 128) + product_ms(64, *discriminator[0][::-1])
        with ThreadPoolExecutor(limits.cores()) as pool:
            adam = median_ms(lambda: list(pool.map(lambda pair: np.copyto(*pair), parts)))
        answer({STEP: products + adam, "products": products, "adam": adam})


def scores(_, answer):
    """Answers with the seconds of an evaluation, and of its longest part."""
    opt = cgan.parse_flags(["--inception_weights", "original"])
    evaluate = Evaluation(cgan.load_data(opt, train=False), opt, cgan.generate, fid, cgan.REAL_ABOVE)
    some, _ = evaluate.dataset[range(opt.fid_samples)]
    generator, discriminator = networks(opt)
    train, dataloader = training(len(CHANGES))  # as a run has trained before
    train(itertools.islice(dataloader, WARM_UP))
    answer({})
    while True:
        whole = best_of_two(lambda: evaluate({"generator": generator, "discriminator": discriminator}, 1))
        inception = best_of_two(lambda: fid.inception_features(some, evaluate.inception))
        answer({INCEPTION: inception, EVALUATION: whole, PEAK: peak()})


OPERATORS = {  # by how Jittor's profiler names them
    "stack«KIND:FORWARD": "layers: forward",
    "stack«KIND:BACKWARD": "layers: gradients but those of weights and inputs",
    "stack«KIND:WEIGHTS": "layers: gradients of weights",
    "stack«KIND:INPUT": "layers: gradients of inputs",
    "adam": "Adam",
}


def profile(keep):
    """Prints where a step goes, operator by operator, by Jittor's profiler."""
    train, dataloader = training(len(CHANGES))
    train(itertools.islice(dataloader, WARM_UP))
    with jt.profile_scope() as report:
        start = time.perf_counter()
        train(itertools.islice(dataloader, PROFILED))
        step = 1000 * (time.perf_counter() - start) / PROFILED
    times, counts = defaultdict(float), defaultdict(int)
    for row in (dict(zip(report[0], values)) for values in report[1:]):
        name = next((name for key, name in OPERATORS.items() if key in row["Name"]), "all other operators")
        times[name] += float(row["TotalTime"]) / 1e6 / PROFILED
        counts[name] += int(row["Count"])
    times["Python, the loader and Jittor's dispatch"] = step - sum(times.values())
    rows = [[name, str(round(counts[name] / PROFILED) or ""), f"{ms:.2f}"] for name, ms in times.items()]
    rows.sort(key=lambda row: -float(row[2]))
    show(keep, "profile", ["", "times a step", "ms a step"], [*rows, ["a step", "", f"{step:.2f}"]])


def main():
    what, *rest = sys.argv[1:]
    if what in ("profile", "save"):
        return profile("--keep" in rest) if what == "profile" else save_experiment(*rest)
    row, answer, environment = Row(**json.loads(what)), answers(), run.describe_environment()
    del environment["threads"]  # the row says how many
    answer(environment)
    if row.name in ("cgan", "floor", "scores"):
        return {"cgan": whole_program, "floor": floor, "scores": scores}[row.name](row, answer)
    train, dataloader = training(0 if row.name == "plain" else int(row.name))
    time_epochs(train, lambda: itertools.islice(dataloader, row.steps), answer)


if __name__ == "__main__":
    main()
