"""Compares training steps of this program, of the per-example loop and of PyTorch.

`python -m benchmarks.train_step` measures images per second, start-up time, graph size and peak
memory on one batch of random images. `benchmarks.naive_condconv` has the per-example loop.
"""
from absl import flags

from benchmarks import contest
from benchmarks import protocol
from common import app


def main(argv):
    """Measures, prints a table and writes --json."""
    del argv
    contest.run(protocol.TRAIN, flags.FLAGS)


if __name__ == '__main__':
    contest.define_flags(protocol.TRAIN, flags)
    app.run(main)
