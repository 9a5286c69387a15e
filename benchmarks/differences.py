"""How far apart runs are, and what of it chance does not explain."""

import math
import statistics

from scipy import stats

from benchmarks.common import markdown

REACHED = "up to real digits"


def welch(values, others):
    """Returns the difference of the means, half its interval of 95% and p; of zeros as others, Student's of values."""
    difference = statistics.mean(values) - statistics.mean(others)
    parts = [(statistics.variance(x) / len(x), len(x) - 1) if len(x) > 1 else (math.inf, 1) for x in (values, others)]
    error = math.sqrt(sum(part for part, _ in parts))
    if not 0 < error < math.inf:  # a single run says nothing
        return difference, math.inf, 1.0
    freedom = error**4 / sum(part**2 / n for part, n in parts)
    return difference, stats.t.ppf(0.975, freedom) * error, 2 * stats.t.sf(abs(difference) / error, freedom)


def judged(pairs):
    """Returns [(difference, half its interval, p after Holm's correction over all pairs, in words)]."""
    found, largest = [welch(*pair) for pair in pairs], 0.0
    for rank, i in enumerate(sorted(range(len(found)), key=lambda i: found[i][2])):
        largest = min(1.0, max(largest, found[i][2] * (len(found) - rank)))
        words = "higher" if found[i][0] > 0 else "lower"
        found[i] = (*found[i][:2], largest, words if largest < 0.05 else "no difference seen")
    return found


def verdicts(compared):
    """Returns {names: what judged() finds} of {names: (values, others or None, digits, as good as real)}.

    What is as good as real digits is not called higher: it would be no better.
    """
    pairs = {names: (values, others) for names, (values, others, *_) in compared.items() if others}
    found = dict(zip(pairs, judged(list(pairs.values()))))
    for names, (*numbers, words) in found.items():
        found[names] = *numbers, REACHED if words == "higher" and compared[names][-1] else words
    return found


def run_by_run(values, digits):
    return ", ".join(f"{value:.{digits}f}" for value in values)


def table(head, compared):
    """Returns the Markdown table of {(what, of which metric): ...} as verdicts() takes it."""
    body, found = [], verdicts(compared)
    for names, (values, _, digits, _) in compared.items():
        body.append([*names, run_by_run(values, digits), "", ""])
        if names in found:
            difference, width, p, words = found[names]
            ends = f"{difference - width:+.{digits}f} to {difference + width:+.{digits}f}"
            body[-1][3:] = f"{difference:+.{digits}f} ({ends})", f"{words}, p = {p:.2g}"
    return markdown(["", "measure", *head, f"after Holm, of {len(found)}"], body)
