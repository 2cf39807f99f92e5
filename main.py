"""Trains and evaluates an EfficientNet-CondConv network; see README.md.

    python3.7 main.py --mode=train_and_eval --data_dir=DIR --model_dir=DIR
"""
import entry_point
from training import config
from training import run_loop


def main(_):
    return run_loop.run(config.from_flags())


if __name__ == '__main__':
    config.define_flags()
    entry_point.run(main)
