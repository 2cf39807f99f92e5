"""Compares inference of this program, of the per-example loop and of PyTorch.

`python -m benchmarks.infer` measures images per second, start-up time, graph size and peak memory
on one batch of random images. `benchmarks.naive_condconv` has the per-example loop.
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
    contest.define_flags(protocol.INFER, flags)
    app.run(main)
