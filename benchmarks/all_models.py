"""Run every backbone with every strategy on small random models: `python benchmarks/all_models.py --out build/all-models`.

Writes the models into `models/` of the working directory, starts a stub of the APIs on this machine, and runs
`medgraft bench` with what is given here. Needs every plugin of `plugins/`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from medgraft_api.stub import Stub


def main(words: list[str]) -> int:
    """Run the suite with the options in `words`; medgraft's exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default=str(Path(__file__).parent / "suites" / "all-models.toml"))
    own, words = parser.parse_known_args(words)
    command = [sys.executable, "-m", "medgraft"]
    subprocess.run([*command, "tiny-models", "models"], check=True, stdout=sys.stderr)
    with Stub() as stub:
        environment = {
            "GOOGLE_GEMINI_BASE_URL": stub.url, "OPENAI_BASE_URL": f"{stub.url}/v1", "GEMINI_API_KEY": "none",
            "OPENAI_API_KEY": "none", "MEDGRAFT_API_SEND_IMAGES": "1", "MEDGRAFT_API_REQUESTS_PER_MINUTE": "6000",
        }  # fmt: skip
        done = subprocess.run([*command, "bench", own.suite, *words], env=os.environ | environment)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
