"""`python -m medgraft`, the same as the command `medgraft`."""

import sys

from medgraft.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
