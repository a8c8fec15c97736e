"""``python -m fusedrnn``, and ``torchrun -m fusedrnn``: the command ``fusedrnn``."""

from .lm.cli import main

if __name__ == "__main__":
    main()
