"""How much memory and how many cores this process may use: the container's, a batch system's or the shell's limits."""

import contextlib
import os

ROOT = "/"


def held_by_groups(controller, name):
    """Returns the words in the files `name` of this process's control groups, own and above, of version 1 and 2."""
    words, groups = [], []
    with contextlib.suppress(OSError), open(os.path.join(ROOT, "proc/self/cgroup")) as file:
        groups = [line.rstrip("\n").split(":", 2) for line in file]
    for _, controllers, path in groups:
        if controllers and controller not in controllers.split(","):
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            folder = os.path.join(ROOT, "sys/fs/cgroup", controllers, *parts[:depth])
            # Inside a container, its own group is the topmost one to be seen
            with contextlib.suppress(OSError), open(os.path.join(folder, name)) as file:
                words += file.read().split()
    return words


def memory():
    """Returns how many bytes this process may use at most: of the machine, its control groups, and ulimit -v."""
    import resource  # not above: what draws curves needs no Unix

    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    limits += [limit for limit in resource.getrlimit(resource.RLIMIT_AS)[:1] if limit != resource.RLIM_INFINITY]
    words = held_by_groups("memory", "memory.max") + held_by_groups("memory", "memory.limit_in_bytes")
    return min(limits + [int(word) for word in words if word.isdigit()])


def cores():
    """Returns how many cores this process may use, at least 1: those it may run on, or its quota of their time."""
    most = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    words = held_by_groups("cpu", "cpu.max")
    quotas = words[::2] + held_by_groups("cpu", "cpu.cfs_quota_us")  # microseconds in each period; none: max or -1
    periods = words[1::2] + held_by_groups("cpu", "cpu.cfs_period_us")
    whole = [int(quota) // int(period) for quota, period in zip(quotas, periods) if quota.isdigit()]
    return max(1, min([most, *whole]))
