"""What ``benchmarks/gpu_acceptance.py`` does on a machine with a GPU; docs/gpu-acceptance.md describes it.

``command`` is the command line, and ``sections`` shares the time out and keeps what each section found. Nothing of
these imports torch: all that touches the GPU runs in a process of its own (``processes``), which can hang or crash
without an end to the rest. ``checks`` has the sections that pass or fail, ``timings`` those that measure, and
``worker`` what their processes run. ``report`` writes the JSON and the Markdown.
"""
