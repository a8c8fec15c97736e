from pathlib import Path

# Tests may be run against an installed package, from a copy of tests/ alone.
if not (Path(__file__).parents[2] / "benchmarks" / "acceptance").exists():
    collect_ignore_glob = ["test_*.py"]
