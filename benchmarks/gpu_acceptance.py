"""All that takes a GPU, in one command: build, tests, compute-sanitizer and timings against nn.*.

python benchmarks/gpu_acceptance.py --help
python benchmarks/gpu_acceptance.py --out acceptance
"""

import sys

from acceptance.command import main

if __name__ == "__main__":
    sys.exit(main())
