"""fusedrnn against nn.LSTM, nn.GRU and nn.RNN; the same as ``fusedrnn bench``.

python benchmarks/run.py --help
python benchmarks/run.py --quick
"""

from fusedrnn.bench.command import bench

if __name__ == "__main__":
    bench()
