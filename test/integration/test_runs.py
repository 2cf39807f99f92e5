"""A run's settings belong to the run: what goes on from it, or reads it, knows them."""
import json
import os

import numpy as np
import pytest

from run_log import event_log

# Three steps of 32 images are an epoch.
SYNTHETIC = ('--data_dir=synthetic', '--num_train_images=96', '--num_label_classes=10',
             '--model_name=efficientnet-lite0', '--width_coefficient=0.25',
             '--depth_coefficient=0.25', '--input_image_size=16', '--lr_warmup_epochs=0',
             '--lr_decay_epoch=1', '--lr_decay_factor=0.5', '--mode=train',
             '--log_step_count_steps=1')


def events(model_dir, name):
    return [event for event in event_log.read(str(model_dir)) if event['event'] == name]


def read_config(model_dir):
    with open(os.path.join(str(model_dir), 'config.json')) as file:
        return json.load(file)


@pytest.mark.slow
def test_a_run_that_goes_on_with_another_batch_size_counts_images(run, tmp_path):
    """Two epochs in 6 steps of 32 images, then two in 4 steps of 48, with the learning rate of
    each."""
    for batch_size, num_epochs in ((32, 2), (48, 4), (48, 4)):
        completed = run('main.py', *SYNTHETIC, f'--model_dir={tmp_path}',
                        f'--batch_size={batch_size}', f'--train_epochs={num_epochs}')
        assert completed.returncode == 0, completed.stderr
        if batch_size == 48 and 'goes on' in completed.stderr:
            assert [line.split() for line in completed.stderr.splitlines()
                    if line.startswith('--batch_size')] == [['--batch_size', '32', '48']]
    trained = {event['step']: event for event in events(tmp_path, 'train')}
    assert sorted(trained) == list(range(1, 11))
    epochs = [step / 3 for step in range(1, 7)] + [2 + step / 2 for step in range(1, 5)]
    np.testing.assert_allclose([trained[step]['epoch'] for step in sorted(trained)], epochs,
                               atol=1e-4)
    peaks = [0.016 * 32 / 256] * 6 + [0.016 * 48 / 256] * 4
    # A step has the rate of its start.
    starts = [0, *epochs[:5], *(2 + step / 2 for step in range(4))]
    np.testing.assert_allclose(
        [trained[step]['learning_rate'] for step in sorted(trained)],
        [peak * 0.5 ** int(start + 1e-6) for peak, start in zip(peaks, starts)], rtol=1e-5)
    assert events(tmp_path, 'run_stop')[-1]['status'] == 'already_finished'
    config = read_config(tmp_path)
    assert [(segment['step'], segment['data']['batch_size'], segment['run']['train_epochs'])
            for segment in config['segments']] == [(0, 32, 2.0), (6, 48, 4.0)]
    assert config['data']['batch_size'] == 48
