"""This process among those that mpirun started, before Jittor is there to be asked."""

import os
import sys

RANK = int(os.environ.get("OMPI_COMM_WORLD_RANK", 0))
PROCESSES = int(os.environ.get("OMPI_COMM_WORLD_SIZE", 1))


def refuse(message):
    """Ends the program with one line and status 2; of several processes only the first one prints it."""
    if not RANK:
        print(f"{os.path.basename(sys.argv[0])}: {' '.join(str(message).split())}", file=sys.stderr)
    sys.exit(2)
