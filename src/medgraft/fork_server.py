"""The fork server's preload: imports what runs need, with bitsandbytes silenced first."""

from medgraft.quiet import quiet_libraries

quiet_libraries()

import medgraft.benchmark.process  # noqa: E402, F401
