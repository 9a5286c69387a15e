"""Shows where a training step of cgan.py goes, operator by operator, by Jittor's profiler.

    python -m benchmarks.step_profile

It takes half a minute. What the operators of a step do not take is Python's, the loader's and Jittor's dispatch.
"""

import itertools
import re
import time
from collections import defaultdict

from benchmarks import epoch_time
from support.device import jt

STEPS = 500


def operator_name(source, names):
    """Returns what a kernel of Jittor's computes, from its source. names: networks by their number of linear layers."""
    function = re.search(r"stack::(forward|backward\w*)\(", source)
    if function:
        return f"{names[source.count('.n_in =')]}: {function[1]}"
    return f"Adam, {source.count('adam(in')} parameters" if "adam(in" in source else "all other operators"


def profile(train, batches):
    """Prints the table. train(batches): a step for each; batches(): an epoch's."""
    train(itertools.islice(batches(), epoch_time.WARM_UP))
    start = time.perf_counter()
    train(itertools.islice(batches(), STEPS))
    step = 1000 * (time.perf_counter() - start) / STEPS
    with jt.profile_scope() as report:
        train(itertools.islice(batches(), STEPS))
    times, counts = defaultdict(float), defaultdict(int)
    networks = epoch_time.networks(epoch_time.default_flags())
    names = {sum(isinstance(layer, jt.nn.Linear) for layer in net.model): type(net).__name__ for net in networks}
    heads = report[0]
    for row in (dict(zip(heads, values)) for values in report[1:]):
        with open(row["FileName"]) as file:
            name = operator_name(file.read(), names)
        times[name] += float(row["TotalTime"]) / 1e6 / STEPS
        counts[name] += int(row["Count"])
    print("| | times a step | ms a step |\n| --- | --- | --- |")
    for name in sorted(times, key=times.get, reverse=True):
        print(f"| {name} | {counts[name] / STEPS:.0f} | {times[name]:.2f} |")
    print(f"| Python, the loader and Jittor's dispatch | | {step - sum(times.values()):.2f} |")
    print(f"| a step | | {step:.2f} |")


def main():
    epoch_time.plain(len(epoch_time.CHANGES), profile)


if __name__ == "__main__":
    main()
