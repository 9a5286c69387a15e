"""The rows of benchmarks/epoch_time.py in PyTorch and JAX, which answer as timing.py asks. No Jittor is needed.

    python -m benchmarks.peer_rows '{"name": "pytorch|pytorch tuned|pytorch compiled|jax|jax scan"}' FOLDER

The first is a Row of benchmarks/timing.py. FOLDER/experiment.npz: what benchmarks/jittor_rows.py wrote: images
(60000, 1024) in [-1, 1], labels (60000,), and the sizes of the linear layers.
"""

import functools
import json
import sys
from importlib import metadata

import numpy as np

from benchmarks.timing import INCEPTION, PEAK, WARM_UP, Row, answers, best_of_two, peak, time_epochs
from support import limits


def pytorch(experiment, row, answer, tuned=False, compiled=False):
    """The loop as people write it; tuned: fused Adam, discriminator frozen in the generator's step, one pass."""
    import torch
    from torch import nn

    tuned = tuned or compiled

    class Network(nn.Module):
        def __init__(self, sizes, between, *last):
            super().__init__()
            self.label_embedding = nn.Embedding(10, 10)
            layers = [nn.Linear(*sizes[:2]), nn.LeakyReLU(0.2)]
            for n_in, n_out in zip(sizes[1:-2], sizes[2:-1]):
                layers += [nn.Linear(n_in, n_out), between(n_out), nn.LeakyReLU(0.2)]
            self.model = nn.Sequential(*layers, nn.Linear(*sizes[-2:]), *last)

        def forward(self, inputs, labels):
            return self.model(torch.cat([inputs, self.label_embedding(labels)], 1))

    torch.set_num_threads(limits.cores())
    images, labels = map(torch.from_numpy, (experiment["images"], experiment["labels"]))
    generator = Network(experiment["Generator"].tolist(), lambda n: nn.BatchNorm1d(n, 0.8), nn.Tanh())
    discriminator = Network(experiment["Discriminator"].tolist(), lambda n: nn.Dropout(0.4))
    discriminator.eval()  # as in Jittor, see cgan.Discriminator
    adversarial_loss = nn.MSELoss()
    settings = {"lr": 0.0002, "betas": (0.5, 0.999), "fused": tuned or None}
    optimizer_G = torch.optim.Adam(generator.parameters(), **settings)
    optimizer_D = torch.optim.Adam(discriminator.parameters(), **settings)
    if compiled:
        generator, discriminator = torch.compile(generator), torch.compile(discriminator)

    def batches():
        for picked in torch.randperm(len(images)).split(row.batch_size)[: row.steps]:
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

    time_epochs(train, batches, answer, None if compiled else WARM_UP)


def pytorch_scores(experiment, row, answer, scores=True, channels_last=False):
    """The features of Inception-v3, with random weights, 10 images at a time: faster than 50, as in cgan.py.

    channels_last: its arrays are laid out so.
    """
    import torch
    from torchvision.models import inception_v3

    torch.set_num_threads(limits.cores())
    model = inception_v3(weights=None, aux_logits=False, init_weights=False).eval()
    model.fc = torch.nn.Identity()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model, images = model.to(memory_format=layout), torch.rand(100, 3, 299, 299).to(memory_format=layout)

    def inception():
        with torch.inference_mode():
            return [model(part) for part in images.split(10)]

    answer({})
    while True:
        answer({INCEPTION: best_of_two(inception), PEAK: peak()})


def jax(experiment, row, answer, scan=False):
    """The loop in JAX, each step compiled as a whole; scan: the epoch's full batches in one compiled call."""
    import jax
    from jax import numpy as jnp

    tree_map, rng = jax.tree_util.tree_map, np.random.default_rng(0)

    def network(sizes, normalised):
        layers = []
        for n_in, n_out in zip(sizes, sizes[1:]):
            weight = rng.uniform(-(n_in**-0.5), n_in**-0.5, (n_in, n_out))
            layers.append({"weight": jnp.float32(weight), "bias": jnp.zeros(n_out)})
        for layer in layers[1:-1] if normalised else []:
            layer.update(scale=jnp.ones_like(layer["bias"]), shift=jnp.zeros_like(layer["bias"]))
        return {"embedding": jnp.float32(rng.normal(size=(10, 10))), "layers": layers}

    def forward(network, x, labels):
        """Returns the outputs, and the mean and variance that each batch normalisation found."""
        x, found = jnp.concatenate([x, network["embedding"][labels]], 1), []
        for i, layer in enumerate(network["layers"]):
            x = jax.nn.leaky_relu(x, 0.2) if i > 0 else x
            x = x @ layer["weight"] + layer["bias"]
            if "scale" in layer:
                mean, var = x.mean(0), x.var(0)
                found.append((mean, var))
                x = (x - mean) / jnp.sqrt(var + 0.8) * layer["scale"] + layer["shift"]
        return x, found

    def adam(network, gradients, moments, n_step):
        m = tree_map(lambda m, g: 0.5 * m + 0.5 * g, moments[0], gradients)
        v = tree_map(lambda v, g: 0.999 * v + 0.001 * g * g, moments[1], gradients)
        size = 0.0002 * jnp.sqrt(1 - 0.999**n_step) / (1 - 0.5**n_step)
        return tree_map(lambda p, m, v: p - size * m / (jnp.sqrt(v) + 1e-8), network, m, v), (m, v)

    def step(images, real_labels, state, batch):
        generator, statistics, moments_g, discriminator, moments_d, n_step, key = state
        real_batch, labels = images[batch], real_labels[batch]
        key, key_noise, key_labels = jax.random.split(key, 3)
        noise = jax.random.normal(key_noise, (len(batch), 100))
        gen_labels = jax.random.randint(key_labels, (len(batch),), 0, 10)

        def loss_g(generator):
            gen_images, found = forward(generator, noise, gen_labels)
            gen_images = jnp.tanh(gen_images)
            return ((forward(discriminator, gen_images, gen_labels)[0] - 1) ** 2).mean(), (gen_images, found)

        def loss_d(discriminator):
            both = jnp.concatenate([real_batch, gen_images])
            validity, _ = forward(discriminator, both, jnp.concatenate([labels, gen_labels]))
            return ((validity - jnp.repeat(jnp.float32([1, 0]), len(batch))[:, None]) ** 2).mean()

        (g_loss, (gen_images, found)), gradients = jax.value_and_grad(loss_g, has_aux=True)(generator)
        d_loss, gradients_d = jax.value_and_grad(loss_d)(discriminator)
        statistics = tree_map(lambda old, new: 0.9 * old + 0.1 * new, statistics, found)
        generator, moments_g = adam(generator, gradients, moments_g, n_step)
        discriminator, moments_d = adam(discriminator, gradients_d, moments_d, n_step)
        return (generator, statistics, moments_g, discriminator, moments_d, n_step + 1, key), (g_loss, d_loss)

    images, real_labels = jnp.asarray(experiment["images"]), jnp.asarray(experiment["labels"])
    sizes = experiment["Generator"].tolist()
    networks = network(sizes, True), network(experiment["Discriminator"].tolist(), False)
    statistics = [(jnp.zeros(n), jnp.ones(n)) for n in sizes[2:-1]]
    moments = [tuple(tree_map(jnp.zeros_like, network) for _ in range(2)) for network in networks]
    state = networks[0], statistics, moments[0], networks[1], moments[1], jnp.float32(1), jax.random.PRNGKey(0)

    @functools.partial(jax.jit, donate_argnums=2)
    def steps(images, real_labels, state, batches):
        return jax.lax.scan(functools.partial(step, images, real_labels), state, batches)

    def batches():
        starts = range(row.batch_size, len(images), row.batch_size)
        return np.split(np.random.permutation(len(images)), starts)[: row.steps]

    def train(batches):
        nonlocal state
        *full, last = batches
        for group in [np.stack(full), last[None]] if scan else [batch[None] for batch in (*full, last)]:
            state, losses = steps(images, real_labels, state, group)
            np.asarray(losses)

    time_epochs(train, batches, answer, warm_up=None)


def main():
    row = Row(**json.loads(sys.argv[1]))
    with np.load(f"{sys.argv[2]}/experiment.npz") as file:
        experiment = dict(file)
    for network in ("Generator", "Discriminator"):
        experiment[network][1:-1] *= row.width
    framework, *ways = row.name.split()
    train, package = {"pytorch": (pytorch, "torch"), "jax": (jax, "jax")}[framework]
    train = pytorch_scores if "scores" in ways else train
    answer = answers()
    answer({package: metadata.version(package)})
    train(experiment, row, answer, **dict.fromkeys(ways, True))


if __name__ == "__main__":
    main()
