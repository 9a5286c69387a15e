"""Trains a conditional GAN (Mirza & Osindero 2014) that draws MNIST digits on command.

    python cgan.py --n_epochs 100           100 epochs, in the current folder
    python cgan.py --n_epochs 3 --inception_weights none --output_dir trial         a quick look
    python cgan.py --digits 31415926        draw these digits with a trained generator, as images/digits.png
    python cgan.py --export DIR --n 1000    write a thousand single images of every digit into DIR
    python cgan.py --resume                 continue a run that was interrupted
    python cgan.py --help                   all flags

Writes images/<batches done>.png (one column per digit) and results/ (log.json, checkpoint.npz, run.html).
From top to bottom: flags, generator, discriminator, data, training, drawing. What surrounds the experiment, such as
progress, log and checkpoint, is in support/runs/run.py; docs/report.md says what comes from the report, and
docs/changing.md how to change something.
"""

from support import terminal

if __name__ == "__main__":
    terminal.take_over()  # of Ctrl-C, which may come while all this is imported

import os

from support import flags
from support.inception_weights import weights_file
from support.runs import process, resume


# ---------------------------------------------------------------- flags
def flag_parser():
    """Returns the parser of the command line; what is wrong ends the program with one line and status 2."""
    parser = flags.Parser("Trains a conditional GAN that draws MNIST digits on command.")
    flag, whole = parser.add_argument, flags.whole_number
    flag("--n_epochs", type=whole(1), default=100, help="how many times training goes through the images")
    flag("--batch_size", type=whole(2), default=64, fixed=True, help="images per step")
    flag("--lr", type=flags.positive, default=0.0002, help="learning rate of both Adam optimizers")
    flag("--lr_d", type=flags.positive, help="the discriminator's learning rate (default: --lr)")
    flag("--b1", type=flags.decay_rate, default=0.5, help="Adam's decay rate of the gradient's mean")
    flag("--b2", type=flags.decay_rate, default=0.999, help="Adam's decay rate of the squared gradient's mean")
    flag("--latent_dim", type=whole(1), default=100, fixed=True, help="width of the noise")
    flag("--n_classes", type=whole(1), fixed=True, help="how many labels there are (default: as the images have)")
    flag("--img_size", type=whole(1), default=32, fixed=True, help="height and width of the images")
    flag("--hidden_d", type=whole(1), default=512, fixed=True, help="width of the discriminator's hidden layers")
    flag("--dropout", action="store_true", fixed=True, help="switch the discriminator's dropout on")
    flag("--ema", type=flags.decay_rate, fixed=True, help="draw with a running average of the weights, such as 0.999")
    flag("--sample_interval", type=whole(1), default=1000, help="batches between two sample grids")
    flag("--fid_interval", type=whole(1), default=10, help="epochs between two evaluations; the last is always one")
    flag("--fid_samples", type=whole(2), default=100, help="how many real and how many generated images FID compares")
    flag("--inception_weights", type=weights_file, help="FID's: a file, jittor, original or none: docs/metrics.md")
    flag("--classifier", type=resume.classifier_file, help="scores other images than MNIST's: docs/metrics.md")
    flag("--data_root", type=flags.whole_path, help="four files like MNIST's, or one folder per class (default: MNIST)")
    flag("--seed", type=whole(0), default=0, fixed=True, help="the same seed gives the same run")
    flag("--max_batches", type=whole(1), fixed=True, help="end every epoch after this many batches (default: all)")
    flag("--keep", type=whole(0), help="epochs between generators to keep, beside the best (default: none)")
    flag("--cpu", action="store_true", help="stay on the CPU even if there is a GPU")
    flag("--no-cpu", action="store_false", dest="cpu", default=None, help="on --resume: use a GPU again")
    start = {"recorded": False}  # how a run is started, not what it is
    flag("--output_dir", type=flags.typed_path, default=".", help="where images/ and results/ go", **start)
    flag("--resume", type=flags.run_file, nargs="?", const="", help="continue a run (default: --output_dir's)", **start)
    flag("--overwrite", action="store_true", help="delete the run that --output_dir holds", **start)
    flag("--digits", type=flags.label_text, metavar="TEXT", help="draw these labels by name: 314, or 26 cat", **start)
    flag("--export", type=flags.typed_path, metavar="DIR", help="write single images, one folder per label", **start)
    flag("--npz", type=flags.typed_path, metavar="FILE", help="write them as arrays, images and labels", **start)
    flag("--n", type=whole(1), help="images per label that --export or --npz writes (default: 1000)", **start)
    return parser


def parse_flags(argv=None):
    """Returns the flags of a command line, those of the run that --resume names below them."""
    return resume.read_flags(flag_parser(), argv)


if __name__ == "__main__":
    # Not at the end: Jittor's import compiles for minutes the first time, and by then a wrong flag should be known
    opt = parse_flags()
    if not resume.draws(opt):
        process.start_run(opt)
    if opt.cpu:
        os.environ["nvcc_path"] = ""

import numpy as np

import fid
from support import digit_classifier
from support.device import jt, nn, set_seed
from support.evaluation import Evaluation, evaluation_mode, in_parts
from support.fast.adam import Adam
from support.fast.layers import Embedding, FusedSequential, Tanh
from support.mnist import load_mnist
from support.pages import pictures
from support.runs.export import export
from support.runs.run import Run
from support.saved.checkpoint import load_weights, read_generator
from support.saved.paths import digits_path, make_folders


# ---------------------------------------------------------------- networks
class Generator(nn.Module):
    """Draws the digit that a label asks for, from noise (report: generator).

    latent_dim: width of the noise; n_classes: number of labels; img_size: height and width S of the images.
    (noise (N, latent_dim), labels (N,)) -> images (N, 1, S, S) in [-1, 1].
    """

    def __init__(self, latent_dim, n_classes, img_size):
        super().__init__()
        self.latent_dim, self.n_classes, self.img_size = latent_dim, n_classes, img_size
        self.label_embedding = Embedding(n_classes, n_classes)

        def block(n_in, n_out, normalize=True):
            layers = [nn.Linear(n_in, n_out)]
            if normalize:
                # PyTorch-GAN's and JGAN's cgan.py write BatchNorm1d(n, 0.8). It looks like a momentum, but lands on
                # eps (PyTorch-GAN issue 116); kept, as that is what these scripts train.
                layers.append(nn.BatchNorm1d(n_out, eps=0.8))
            return layers + [nn.LeakyReLU(0.2)]

        self.model = FusedSequential(
            *block(latent_dim + n_classes, 128, normalize=False),
            *block(128, 256),
            *block(256, 512),
            *block(512, 1024),
            nn.Linear(1024, img_size * img_size),
            Tanh(),
        )

    def execute(self, noise, labels):
        images = self.model(self.label_embedding(labels), noise)  # concatenates its inputs
        return images.reshape(-1, 1, self.img_size, self.img_size)


class Discriminator(nn.Module):
    """Judges whether an image is a real one of the label beside it (report: discriminator).

    n_classes: number of labels; img_size: height and width S of the images; hidden: width of the hidden layers.
    (images (N, 1, S, S), labels (N,)) -> validity (N, 1): any real number, trained towards 1 for real images
    and 0 for generated ones.
    """

    def __init__(self, n_classes, img_size, hidden):
        super().__init__()
        self.label_embedding = Embedding(n_classes, n_classes)
        # Jittor creates Dropout switched off, and the report's loop does not switch it on: --dropout does.
        self.model = FusedSequential(
            nn.Linear(n_classes + img_size * img_size, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, hidden),
            nn.Dropout(0.4),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, hidden),
            nn.Dropout(0.4),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, 1),
        )

    def execute(self, images, labels):
        return self.model(images.reshape(images.shape[0], -1), self.label_embedding(labels))


# ---------------------------------------------------------------- data
def load_data(opt, train):
    """Returns MNIST's training or test set: batches of images (N, 1, S, S) in [-1, 1] and labels (N,)."""
    dataset = load_mnist(train, opt.img_size, opt.data_root)
    return dataset.set_attrs(batch_size=opt.batch_size, shuffle=train)


def seed_epoch(opt, epoch, dataloader):
    """Makes every random number of an epoch follow from (seed, epoch), whatever was made or drawn before."""
    set_seed(int(np.random.SeedSequence((opt.seed, epoch, jt.rank)).generate_state(1)[0] >> 1))
    dataloader._shuffle_rng = np.random.default_rng((opt.seed, epoch))  # the loader draws from one of its own


# ---------------------------------------------------------------- training
adversarial_loss = nn.MSELoss()  # to 1 for real, to 0 for generated images: a least-squares GAN (Mao et al. 2017)
REAL_ABOVE = 0.5  # the validity above which the discriminator's answer counts as real: nearer to 1 than to 0


def training_step(opt, generator, discriminator, optimizer_G, optimizer_D, real_images, labels):
    """Trains both networks on a batch (report: one step); returns {name: loss} to record."""
    batch_size = real_images.shape[0]
    valid, fake = jt.ones((batch_size, 1)), jt.zeros((batch_size, 1))

    # Generator: its digits should pass as real
    noise = jt.randn(batch_size, opt.latent_dim)
    gen_labels = jt.randint(0, opt.n_classes, (batch_size,))
    gen_images = generator(noise, gen_labels)
    g_loss = adversarial_loss(discriminator(gen_images, gen_labels), valid)
    optimizer_G.step(g_loss)

    # Discriminator: 1 for real images, 0 for the digits just generated
    real_loss = adversarial_loss(discriminator(real_images, labels), valid)
    fake_loss = adversarial_loss(discriminator(gen_images.detach(), gen_labels), fake)
    d_loss = (real_loss + fake_loss) / 2
    optimizer_D.step(d_loss)
    return {"d_loss": d_loss, "g_loss": g_loss}


def update_ema(ema, network, decay):
    """Moves an exponential moving average of a network's weights and running statistics on by one step."""
    for mean, value in zip(ema.state_dict().values(), network.state_dict().values()):
        mean.update((decay * mean + (1 - decay) * value).detach())


def make_generator(opt):
    return Generator(opt.latent_dim, opt.n_classes, opt.img_size)


def train(opt):
    """Trains both networks and writes grids, log and checkpoint under opt.output_dir.

    Raises what support.runs.run.Run raises.
    """
    dataloader = load_data(opt, train=True)
    evaluate = Evaluation(load_data(opt, train=False), opt, generate, fid, REAL_ABOVE)
    seed_epoch(opt, 0, dataloader)
    generator = make_generator(opt)
    discriminator = Discriminator(opt.n_classes, opt.img_size, opt.hidden_d)
    optimizer_G = Adam(generator.parameters(), lr=opt.lr, betas=(opt.b1, opt.b2))
    optimizer_D = Adam(discriminator.parameters(), lr=opt.lr_d or opt.lr, betas=(opt.b1, opt.b2))
    networks = {"generator": generator, "discriminator": discriminator}
    if opt.dropout:
        discriminator.train()
    jt.sync_all()  # draws the weights now, with the seed of epoch 0
    if opt.ema is not None:
        networks["ema"] = make_generator(opt)
        networks["ema"].load_state_dict(generator.state_dict())

    run = Run(opt, networks, {"optimizer_G": optimizer_G, "optimizer_D": optimizer_D}, evaluate)
    for epoch in run.epochs():  # each is saved; every fid_interval-th and the last are evaluated
        seed_epoch(opt, epoch, dataloader)
        for real_images, labels in run.batches(dataloader):
            losses = training_step(opt, generator, discriminator, optimizer_G, optimizer_D, real_images, labels)
            if opt.ema is not None:
                update_ema(networks["ema"], generator, opt.ema)
            run.record(**losses)
            if run.grid_due():
                run.write_grid(save_samples, networks.get("ema", generator))


# ---------------------------------------------------------------- drawing
def generate(generator, noise, labels):
    """Returns images (N, 1, S, S) in [-1, 1] as an array, drawn in evaluation mode."""
    noise, labels = noise.astype(np.float32), labels.astype(np.int32)
    with evaluation_mode(generator):
        return in_parts(generator, noise, labels, size=2000)


def save_samples(path, generator, opt):
    """Writes a grid of 10 rows and a column for each label; every grid of a run draws from the same noise."""
    rng = np.random.default_rng(opt.seed)  # its own, so that training's random numbers are not disturbed
    labels = np.tile(np.arange(opt.n_classes), 10)
    images = generate(generator, rng.standard_normal((len(labels), opt.latent_dim)), labels)
    grid = jt.misc.make_grid(jt.array(pictures.stretch(images)), nrow=opt.n_classes, padding=2, pad_value=-1)
    pictures.save_picture(path, grid[0].numpy())


def load_generator(path):
    """Returns the trained generator in a checkpoint, or in a file that holds it alone.

    Raises ValueError if there is none, Mismatch if it does not fit the class above.
    """
    config, weights, _ = read_generator(path)
    generator = make_generator(flag_parser().with_defaults(config))
    load_weights(generator, weights, path)
    return generator


def draw_digits(opt):
    """Draws the text of --digits with a trained generator, as images/digits.png under opt.output_dir."""
    path = resume.generator_path(opt)
    generator = load_generator(path)
    labels = np.array([label for row in opt.rows for label in row if label is not None])
    noise = np.random.default_rng(opt.seed).standard_normal((len(labels), generator.latent_dim))
    images = generate(generator, noise, labels)
    make_folders(opt.output_dir)
    target = digits_path(opt.output_dir)
    pictures.save_picture(target, pictures.lay_out(opt.rows, images))
    read = digit_classifier.reading(path, images)
    print(f"{target}: drawn by {resume.describe_generator(path)}{read}{resume.describe_better(opt)}")


if __name__ == "__main__":
    with process.one_sentence(opt):
        if opt.export or opt.npz:
            export(opt, load_generator(resume.generator_path(opt)), generate)
        else:
            draw_digits(opt) if opt.digits else train(opt)
