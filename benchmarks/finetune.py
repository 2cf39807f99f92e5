"""Measures the benefit of pre-trained weights on few images: `python -m benchmarks.finetune`.

EfficientNet-Lite0 is trained on handwritten digits, 20 images of each, with recipes/finetune.flags:
from ImageNet weights (benchmarks/lite0.py), from ImageNet weights with all but the head frozen, and
from scratch. All three train the same number of steps. Each uses the best of several learning
rates, because no single rate suits all three. dataset.create makes the data, main.py trains.
"""
import os
import subprocess
import sys

from absl import flags

from benchmarks import lite0
from benchmarks import outputs
from common import app
from dataset import digits
from run_log import event_log
from tfrecords import schema

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
IMAGES_PER_CLASS = {schema.TRAIN: 20, schema.VALIDATION: 100}
IMAGE_SIZE = 64
TRAIN_EPOCHS = 20            # 125 steps of 32 images
LEARNING_RATES = (0.008, 0.032, 0.128)
RANDOM_SEED = 0


def define_flags():
    flags.DEFINE_string('work_dir', None, 'Directory for data and runs; default: a temporary '
                        'directory.')
    flags.DEFINE_string('json', None, 'File to write the figures to.')


def run(*command):
    completed = subprocess.run([sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True,
                               env={**os.environ, 'PYTHONPATH': ROOT})
    if completed.returncode:
        raise RuntimeError(completed.stdout)


def measure(work_dir):
    """Returns the figures, a dict.

    'top_1' maps the way of training and the learning rate to the final top-1 accuracy of the
    averaged weights; 'best' maps the way to its best top-1 accuracy.
    """
    photos, data = (os.path.join(work_dir, name) for name in ('photos', 'data'))
    digits.make_folders(photos, IMAGES_PER_CLASS)
    run('-m', 'dataset.create', '--source=folder', f'--raw_dir={photos}', f'--output_dir={data}')
    from_pretrained = [f'--init_checkpoint={lite0.extract(work_dir)}']
    ways = {'fine_tuning': from_pretrained,
            'head_only': from_pretrained + ['--freeze=all_but_head'],
            'from_scratch': []}
    top_1 = {way: {} for way in ways}
    for way, more_flags in ways.items():
        for rate in LEARNING_RATES:
            model_dir = os.path.join(work_dir, f'{way}_{rate}')
            # A mirrored digit, or a third of one, no longer shows its class.
            run('main.py', '--accelerator=stock', '--flagfile=recipes/finetune.flags',
                f'--data_dir={data}', f'--model_name={lite0.MODEL_NAME}',
                f'--model_dir={model_dir}', f'--input_image_size={IMAGE_SIZE}',
                '--norandom_flip', '--min_crop_area=0.7', f'--train_epochs={TRAIN_EPOCHS}',
                '--steps_per_eval=1000',
                f'--base_learning_rate={rate}', f'--random_seed={RANDOM_SEED}', *more_flags)
            last = [event for event in event_log.read(model_dir) if event['event'] == 'eval'][-1]
            top_1[way][str(rate)] = last['top_1']
            print(f"{way:14} base_learning_rate {rate:<6} top-1 {last['top_1']:.3f}", flush=True)
    return dict(
        model_name=lite0.MODEL_NAME, train_images=IMAGES_PER_CLASS[schema.TRAIN] * 10,
        validation_images=IMAGES_PER_CLASS[schema.VALIDATION] * 10, train_steps=last['step'],
        image_size=IMAGE_SIZE, top_1=top_1,
        best={way: max(by_rate.values()) for way, by_rate in top_1.items()})


def main(_):
    options = flags.FLAGS
    outputs.check_json(options.json)
    with outputs.work_folder(options.work_dir) as work_dir:
        figures = measure(work_dir)
    outputs.write_json(options.json, figures)


if __name__ == '__main__':
    define_flags()
    app.run(main)
