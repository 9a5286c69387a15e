"""Trains a conditional GAN (Mirza & Osindero 2014) that draws MNIST digits on command.

    python cgan.py --n_epochs 100           the whole experiment, in the current folder
    python cgan.py --max_batches 50 --n_epochs 2 --output_dir /tmp/trial        a quick look
    python cgan.py --digits 2213904         draw these digits with a trained generator, as images/digits.png
    python cgan.py --resume                 go on with a run that was interrupted
    python cgan.py --help                   all flags

Writes images/<batches done>.png (a column a digit) and results/ (log.json, checkpoint.npz).
From top to bottom: flags, generator, discriminator, data, training.
"""

import itertools
import os
import platform
import sys
import time

from support import flags
from support.process import start_run


# ---------------------------------------------------------------- flags
def parse_flags(argv=None):
    """Returns the flags of the command line; ends with one line and status 2 where one is wrong."""
    parser = flags.Parser("Trains a conditional GAN that draws MNIST digits on command.")
    flag = parser.add_argument
    flag("--n_epochs", type=flags.whole_number(1), default=100, help="times that training sees every image")
    flag("--batch_size", type=flags.whole_number(2), default=64, help="images a step")
    flag("--lr", type=flags.positive, default=0.0002, help="learning rate of both Adam optimizers")
    flag("--lr_d", type=flags.positive, help="the discriminator's learning rate (default: --lr)")
    flag("--b1", type=flags.decay_rate, default=0.5, help="Adam's decay rate of the gradient's mean")
    flag("--b2", type=flags.decay_rate, default=0.999, help="Adam's decay rate of the squared gradient's mean")
    flag("--latent_dim", type=flags.whole_number(1), default=100, help="width of the noise")
    flag("--n_classes", type=flags.whole_number(1), default=10, help="how many labels there are")
    flag("--img_size", type=flags.whole_number(1), default=32, help="height and width of the images")
    flag("--hidden_d", type=flags.whole_number(1), default=512, help="width of the discriminator's hidden layers")
    flag("--ema", type=flags.decay_rate, help="draw with a running average of the generator's weights, such as 0.999")
    flag("--sample_interval", type=flags.whole_number(1), default=1000, help="batches between two sample grids")
    flag("--fid_interval", type=flags.whole_number(1), default=10, help="epochs between two FIDs")
    flag("--fid_samples", type=flags.whole_number(2), default=100, help="real and generated images an FID compares")
    flag("--inception_weights", type=flags.weights_file, help="Inception-v3's, or original (default: Jittor's)")
    flag("--data_root", help="folder with the four MNIST-format .gz files (default: Jittor's own MNIST)")
    flag("--seed", type=flags.whole_number(0), default=0, help="the same seed gives the same run")
    flag("--output_dir", type=flags.output_folder, default=".", help="where images/ and results/ go")
    flag("--max_batches", type=flags.whole_number(1), help="end every epoch after so many batches (default: all)")
    flag("--resume", nargs="?", const="", metavar="PATH", help="go on from a checkpoint (default: --output_dir's)")
    flag("--overwrite", action="store_true", help="delete the run that --output_dir holds")
    flag("--digits", type=flags.digit_text, metavar="TEXT", help="only draw these digits, with a trained generator")
    flag("--cpu", action="store_true", help="stay on the CPU, also where there is a GPU")
    opt = flags.parse_resumed(parser, sys.argv[1:] if argv is None else argv)
    opt.lr_d = opt.lr_d or opt.lr
    flags.check_training_flags(parser, opt)
    opt.generator = flags.find_generator(parser, opt) if opt.digits else None
    return opt


if __name__ == "__main__":
    # Before Jittor is imported: its first import compiles for minutes, and it chooses the device.
    opt = parse_flags()
    if not opt.digits:
        start_run(opt.output_dir)
    if opt.cpu:
        os.environ["nvcc_path"] = ""
    sys.stdout.reconfigure(line_buffering=True)  # progress is seen at once, also in a file

import numpy as np
from tqdm import tqdm

import fid
from support import checkpoint, digit_classifier
from support.device import jt
from support.drawing import lay_out, save_picture
from support.fast_cpu import Adam, Linear, Tanh
from support.inception_weights import sha256
from support.mnist import TransformedMNIST

# isort: split
import jittor.transform as transform
from jittor import nn


# ---------------------------------------------------------------- networks
class Generator(nn.Module):
    """Draws the digit that a label asks for, from noise (report: generator).

    latent_dim: width of the noise; n_classes: number of labels; img_size: height and width S of the images.
    (noise (N, latent_dim), labels (N,)) -> images (N, 1, S, S) in [-1, 1].
    """

    def __init__(self, latent_dim=100, n_classes=10, img_size=32):
        super().__init__()
        self.img_size = img_size
        self.label_embedding = nn.Embedding(n_classes, n_classes)

        def block(n_in, n_out, normalize=True):
            layers = [Linear(n_in, n_out)]
            if normalize:
                # The script family that the report builds on writes BatchNorm1d(n, 0.8). It looks like a
                # momentum, but lands on eps (PyTorch-GAN issue 116); kept, as the report was trained with it.
                layers.append(nn.BatchNorm1d(n_out, eps=0.8))
            return layers + [nn.LeakyReLU(0.2)]

        self.model = nn.Sequential(
            *block(latent_dim + n_classes, 128, normalize=False),
            *block(128, 256),
            *block(256, 512),
            *block(512, 1024),
            Linear(1024, img_size * img_size),
            Tanh(),
        )

    def execute(self, noise, labels):
        images = self.model(jt.concat([self.label_embedding(labels), noise], dim=1))
        return images.reshape(-1, 1, self.img_size, self.img_size)


class Discriminator(nn.Module):
    """Judges whether an image is a real one of the label beside it (report: discriminator).

    n_classes: number of labels; img_size: height and width S of the images; hidden: width of the hidden layers.
    (images (N, 1, S, S), labels (N,)) -> validity (N, 1): any real number, trained towards 1 for real images
    and 0 for generated ones.
    """

    def __init__(self, n_classes=10, img_size=32, hidden=512):
        super().__init__()
        self.label_embedding = nn.Embedding(n_classes, n_classes)
        # Jittor creates Dropout switched off, and the report's loop switches nothing on: its curves are those of a
        # discriminator without dropout. discriminator.train() before training switches it on.
        self.model = nn.Sequential(
            Linear(n_classes + img_size * img_size, hidden),
            nn.LeakyReLU(0.2),
            Linear(hidden, hidden),
            nn.Dropout(0.4),
            nn.LeakyReLU(0.2),
            Linear(hidden, hidden),
            nn.Dropout(0.4),
            nn.LeakyReLU(0.2),
            Linear(hidden, 1),
        )

    def execute(self, images, labels):
        return self.model(jt.concat([images.reshape(images.shape[0], -1), self.label_embedding(labels)], dim=1))


# ---------------------------------------------------------------- data and samples
def load_mnist(opt, train):
    """Returns MNIST's training or test set: batches of images (N, 1, S, S) in [-1, 1] and labels (N,)."""
    preprocessing = transform.Compose(
        [transform.Resize(opt.img_size), transform.Gray(), transform.ImageNormalize(mean=[0.5], std=[0.5])]
    )
    # Jittor joins folder and file name as they stand, so the folder needs its slash.
    where = {"data_root": os.path.join(opt.data_root, ""), "download": False} if opt.data_root is not None else {}
    try:
        dataset = TransformedMNIST(train, preprocessing, **where)
    except RuntimeError:
        sys.exit("MNIST is not here and could not be fetched: pip install -r requirements.txt, or give --data_root DIR")
    return dataset.set_attrs(batch_size=opt.batch_size, shuffle=train)


def seed_epoch(opt, epoch, dataloader):
    """Makes every random number of an epoch follow from (seed, epoch), whatever was drawn before."""
    jt.set_global_seed(int(np.random.SeedSequence((opt.seed, epoch, jt.rank)).generate_state(1)[0] >> 1))
    dataloader._shuffle_rng = np.random.default_rng((opt.seed, epoch))  # the loader's own, which that does not reach


def generate(generator, noise, labels):
    """Returns images (N, 1, S, S) in [-1, 1] as an array, drawn in evaluation mode."""
    noise, labels = noise.astype(np.float32), labels.astype(np.int32)
    generator.eval()
    with jt.no_grad():
        parts = [slice(start, start + 2000) for start in range(0, len(labels), 2000)]  # bounds the memory
        images = [generator(jt.array(noise[part]), jt.array(labels[part])).numpy() for part in parts]
    generator.train()
    return np.concatenate(images)


def save_samples(path, generator, opt):
    """Writes a grid of 10 rows and a column for each label; every grid of a run draws from the same noise."""
    rng = np.random.default_rng(opt.seed)  # its own, so that training's random numbers are not disturbed
    labels = np.tile(np.arange(opt.n_classes), 10)
    images = generate(generator, rng.standard_normal((len(labels), opt.latent_dim)), labels)
    grid = jt.misc.make_grid(jt.array(images), nrow=opt.n_classes, padding=2, pad_value=-1)
    save_picture(path, grid[0].numpy())


def draw_digits(opt):
    """Draws the text of --digits with a trained generator, as images/digits.png under opt.output_dir."""
    path, sizes, arrays = opt.generator
    generator = Generator(*sizes)
    generator.load_state_dict(arrays)
    labels = np.array([int(character) for character in opt.digits if character.isdigit()])
    noise = np.random.default_rng(opt.seed).standard_normal((len(labels), sizes[0]))
    picture = lay_out(opt.digits, generate(generator, noise, labels))
    checkpoint.make_folders(opt.output_dir)
    target = os.path.join(opt.output_dir, "images", "digits.png")
    save_picture(target, picture)
    print(f"{target}: drawn by the generator in {path}")


class Evaluation:
    """Scores a generator; its random numbers follow from (seed, epoch), so that training's are not disturbed.

    test_images: (N, 1, S, S) in [-1, 1]. Inception's features of a test image are computed once, when first needed.
    """

    def __init__(self, test_images, opt):
        self.opt, self.test_images, self.inception_features = opt, test_images, {}
        self.weights = opt.inception_weights or fid.find_hub_weights()
        if self.weights:
            self.weights_sha256, self.inception = sha256(self.weights), fid.load_inception(self.weights)
        self.classifier = digit_classifier.load()
        self.test_features, _ = digit_classifier.read_digits(self.classifier, test_images)

    def __call__(self, generator, epoch):
        """Returns what the log holds of one evaluation.

        fid, kid (the report's): opt.fid_samples random test images against as many generated ones, on Inception's
            features; null without its weights, whose SHA-256 is inception_sha256.
        digit_fid: Fréchet distance of 10,000 generated digits to all test images, on the digit classifier's features.
        label_accuracy, class_accuracy: how often the classifier reads the digit asked for, in all and by class.
        """
        opt, rng = self.opt, np.random.default_rng((self.opt.seed, epoch))
        scores = {"fid": None, "kid": None, "fid_samples": opt.fid_samples}
        if self.weights:
            picked = rng.choice(len(self.test_images), opt.fid_samples, replace=False)
            new = [i for i in picked if i not in self.inception_features]
            if new:
                self.inception_features.update(zip(new, fid.inception_features(self.test_images[new], self.inception)))
            real = np.stack([self.inception_features[i] for i in picked])
            noise = rng.standard_normal((opt.fid_samples, opt.latent_dim))
            generated = generate(generator, noise, rng.integers(0, opt.n_classes, opt.fid_samples))
            generated = fid.inception_features(generated, self.inception)
            scores.update(fid=fid.frechet_distance(real, generated), kid=fid.kernel_distance(real, generated))
            scores["inception_sha256"] = self.weights_sha256

        labels = np.arange(10000) % min(opt.n_classes, 10)
        generated = generate(generator, rng.standard_normal((len(labels), opt.latent_dim)), labels)
        features, digits = digit_classifier.read_digits(self.classifier, generated)
        scores["digit_fid"] = fid.frechet_distance(features, self.test_features)
        scores["label_accuracy"] = float((digits == labels).mean())
        scores["class_accuracy"] = [float((digits[labels == label] == label).mean()) for label in np.unique(labels)]
        return scores


# ---------------------------------------------------------------- training
def move_average(average, network, decay):
    """Moves an exponential moving average of a network's weights and running statistics on by one step."""
    for mean, value in zip(average.state_dict().values(), network.state_dict().values()):
        mean.update((decay * mean + (1 - decay) * value).detach())


def mean_losses(losses):
    """Returns the mean of [(d_loss, g_loss)] over the batches, and over the processes where there are several."""
    means = np.mean(losses, axis=0)
    return (jt.array(means).mpi_all_reduce("mean").numpy() if jt.in_mpi else means).tolist()


def train(opt):
    """Trains both networks (report: one step) and writes grids, log and checkpoint under opt.output_dir.

    Raises FloatingPointError where training diverges, OSError where a file cannot be written.
    """
    dataloader = load_mnist(opt, train=True)
    n_batches = min(len(dataloader), opt.max_batches or len(dataloader))
    first_process = jt.rank == 0  # of several under mpirun: the one that prints, samples, evaluates and saves
    if first_process:
        evaluate = Evaluation(load_mnist(opt, train=False).images(), opt)

    if opt.ema is not None:
        average = Generator(opt.latent_dim, opt.n_classes, opt.img_size)
        jt.sync_all()  # its random numbers, before the seed is set: training is the same without it
    seed_epoch(opt, 0, dataloader)
    generator = Generator(opt.latent_dim, opt.n_classes, opt.img_size)
    discriminator = Discriminator(opt.n_classes, opt.img_size, opt.hidden_d)
    adversarial_loss = nn.MSELoss()
    optimizer_G = Adam(generator.parameters(), lr=opt.lr, betas=(opt.b1, opt.b2))
    optimizer_D = Adam(discriminator.parameters(), lr=opt.lr_d, betas=(opt.b1, opt.b2))
    networks = {"generator": generator, "discriminator": discriminator}
    artist = generator  # who draws the grids and is scored
    if opt.ema is not None:
        artist = networks["average"] = average
    for network in networks.values():
        network.mpi_param_broadcast()  # several processes begin with the first one's
    optimizers = {"optimizer_G": optimizer_G, "optimizer_D": optimizer_D}
    epochs_done, log = 0, {"epochs": [], "evaluations": []}
    if opt.checkpoint:
        epochs_done, log = checkpoint.load_checkpoint(opt.checkpoint, networks, optimizers)
    elif first_process and opt.overwrite:
        checkpoint.clear_run(opt.output_dir)
    checkpoint.make_folders(opt.output_dir)
    environment = {
        "jittor": jt.__version__,
        "python": platform.python_version(),
        "device": "cuda" if jt.flags.use_cuda else "cpu",
        "processes": jt.world_size,
    }
    log = {"config": flags.run_config(opt), "environment": environment, **log}

    for epoch in range(epochs_done + 1, opt.n_epochs + 1):
        seed_epoch(opt, epoch, dataloader)
        start, losses = time.time(), []
        batches = tqdm(
            itertools.islice(dataloader, n_batches),
            total=n_batches,
            desc=f"Epoch {epoch}/{opt.n_epochs}",
            leave=False,
            disable=None if first_process else True,  # None: no bar where the output goes to a file
        )
        for i, (real_images, labels) in enumerate(batches):
            batch_size, batches_done = real_images.shape[0], (epoch - 1) * n_batches + i
            valid, fake = jt.ones((batch_size, 1)), jt.zeros((batch_size, 1))

            # Generator: its digits should pass as real
            noise = jt.randn(batch_size, opt.latent_dim)
            gen_labels = jt.randint(0, opt.n_classes, (batch_size,))
            gen_images = generator(noise, gen_labels)
            g_loss = adversarial_loss(discriminator(gen_images, gen_labels), valid)
            optimizer_G.step(g_loss)
            if opt.ema is not None:
                move_average(average, generator, opt.ema if batches_done else 0)  # starts as the generator itself

            # Discriminator: 1 for real images, 0 for the digits just generated; one pass over both halves
            images = jt.concat([real_images, gen_images.detach()])
            validity = discriminator(images, jt.concat([labels, gen_labels]))
            d_loss = adversarial_loss(validity, jt.concat([valid, fake]))
            optimizer_D.step(d_loss)

            # Progress
            losses.append((d_loss.item(), g_loss.item()))
            if not np.isfinite(losses[-1]).all():
                raise FloatingPointError(f"epoch {epoch}, batch {i}: a loss is not finite")
            if not first_process:
                continue
            d, g = losses[-1]
            batches.set_postfix_str(f"D loss: {d:.4f}, G loss: {g:.4f}", refresh=False)
            if i % 50 == 0:
                tqdm.write(
                    f"[Epoch {epoch}/{opt.n_epochs}] [Batch {i}/{n_batches}] [D loss: {d:.4f}] [G loss: {g:.4f}]"
                )
            if batches_done % opt.sample_interval == 0:
                save_samples(os.path.join(opt.output_dir, "images", f"{batches_done}.png"), artist, opt)

        d_loss, g_loss = mean_losses(losses)
        seconds = round(time.time() - start, 2)
        log["epochs"].append({"epoch": epoch, "d_loss": d_loss, "g_loss": g_loss, "seconds": seconds})
        if not first_process:
            continue
        if epoch % opt.fid_interval == 0:
            scores = evaluate(artist, epoch)
            log["evaluations"].append({"epoch": epoch, **scores})
            shown = ["fid", "kid", "digit_fid", "label_accuracy"]
            values = " ".join(f"[{name}: {scores[name]:.4g}]" for name in shown if scores[name] is not None)
            tqdm.write(f"[Epoch {epoch}/{opt.n_epochs}] {values}")
        checkpoint.save_checkpoint(opt.output_dir, networks, optimizers, epoch, log, opt.data_sha256)
        checkpoint.save_log(opt.output_dir, log)
    if first_process:
        print(f"Done: samples, log and checkpoint are in images/ and results/ under {opt.output_dir}.")


if __name__ == "__main__":
    try:
        draw_digits(opt) if opt.digits else train(opt)
    except FloatingPointError as error:
        sys.exit(f"Training diverged in {error}. A smaller --lr helps. {checkpoint.describe_saved(opt.output_dir)}")
    except OSError as error:
        saved = checkpoint.describe_saved(opt.output_dir)
        sys.exit(f"{error.filename or opt.output_dir}: {error.strerror or error}. {saved}")
