"""Trains and evaluates EfficientNet-CondConv networks; see docs/training.md.

    python3.7 main.py --mode=train_and_eval --data_dir=DIR --model_dir=DIR
"""
from common import app
from config import command_line
from config import run_config
from config import settings
from training import header
from training import trainer
from weights import conversion


def main(_):
    header.log_first_line()
    return trainer.run(command_line.from_flags(conversion.as_checkpoint))


if __name__ == '__main__':
    run_config.define_flags()
    app.run(main, first_flags=settings.FIRST)
