"""The benchmark of ``fusedrnn bench`` and ``benchmarks/run.py``: this package against nn.*, always as a ratio.

``measure`` times functions that take turns and says when the machine is too noisy; ``subjects`` has what is compared;
each section of the benchmark is a module that yields rows; ``report`` and ``plot`` write them; ``command`` is the
command line.
"""
