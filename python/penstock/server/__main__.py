"""``python -m penstock.server``: the node process of one home."""

import sys

from penstock.server.process import main

if __name__ == "__main__":
    sys.exit(main())
