"""This process among those that mpirun started, before Jittor is there to be asked."""

import os
import sys

RANK = int(os.environ.get("OMPI_COMM_WORLD_RANK", 0))
PROCESSES = int(os.environ.get("OMPI_COMM_WORLD_SIZE", 1))


def refuse(message):
    """Ends the program with one line and status 2; of several processes only the first one prints it.

    Here and elsewhere SystemExit comes from None: IPython for Python 3.8 cannot show one that has an error behind it.
    """
    if not RANK:
        print(f"{os.path.basename(sys.argv[0])}: {' '.join(str(message).split())}", file=sys.stderr)
    raise SystemExit(2) from None
