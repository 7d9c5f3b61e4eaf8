"""What the fork server of runs imports, and nobody else: what runs need, silenced before bitsandbytes speaks."""

from medgraft.quiet import quiet_libraries

quiet_libraries()

import medgraft.benchmark.process  # noqa: E402, F401
