"""Inference: batched layers, the per-example loop and PyTorch: `python -m benchmarks.infer`.

Images a second, what starting takes, the size of the graph and the peak memory, for one batch of
random images. `benchmarks.naive_condconv` says what the naive formulation is.
"""
from absl import flags

from benchmarks import contest
from benchmarks import protocol
from common import app


def main(argv):
    """Measures, prints a table and writes --json."""
    del argv
    contest.run(protocol.INFER, flags.FLAGS)


if __name__ == '__main__':
    contest.define_flags(flags)
    app.run(main)
