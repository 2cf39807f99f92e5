"""One run with everything that docs/training.md lists as regularization, and what it leaves."""
import os
import shutil

from conftest import TINY
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from checkpoints import store
from config import run_config
from export import loading
from run_log import event_log

REGULARIZED = (
    '--mixup_alpha=0.2', '--cutmix_alpha=1', '--random_erasing_prob=0.5', '--color_jitter=0.4',
    '--vertical_flip', '--label_smoothing=0.1', '--loss=binary_cross_entropy',
    '--augment_name=randaugment', '--random_seed=5', '--moving_average_decay=0.5',
    '--log_step_count_steps=1')


@pytest.mark.slow
def test_all_regularization_together(run, digits_dir, tmp_path):
    def train(name, steps, *flags):
        completed = run(
            'main.py', f'--data_dir={digits_dir}', f'--model_dir={tmp_path}/{name}', *TINY,
            *REGULARIZED, f'--train_steps={steps}', *flags)
        assert completed.returncode == 0, completed.stderr

    train('first', 2, f'--export_dir={tmp_path}/export')
    check_loss_and_probabilities(tmp_path)
    shutil.copytree(tmp_path / 'first', tmp_path / 'again')
    before = weights_of(tmp_path / 'first')
    train('first', 4, '--mode=train')
    train('again', 4, '--mode=train')
    after = weights_of(tmp_path / 'first')
    assert after == weights_of(tmp_path / 'again')
    assert before != after and before.keys() == after.keys()
    losses = [event['loss'] for event in event_log.read(f'{tmp_path}/first')
              if event['event'] == 'train']
    assert len(losses) == len(set(losses)) == 4 and np.isfinite(losses).all()


def weights_of(model_dir):
    reader = tf.train.load_checkpoint(store.latest(str(model_dir)))
    return {key: reader.get_tensor(key).tobytes() for key in reader.get_variable_to_shape_map()}


def check_loss_and_probabilities(tmp_path):
    assert run_config.load(f'{tmp_path}/first').optimization.loss == 'binary_cross_entropy'
    evaluation = [event for event in event_log.read(f'{tmp_path}/first')
                  if event['event'] == 'eval'][-1]
    # Ten sigmoids of a network that knows nothing: 10 log 2, and not log 10.
    assert evaluation['cross_entropy'] == pytest.approx(10 * np.log(2), rel=0.2)
    version, = os.listdir(tmp_path / 'export')
    with loading.load(f'{tmp_path}/export/{version}') as exported:
        assert exported.description['class_activation'] == 'sigmoid'
        outputs = exported.predict(np.full([2, 32, 32, 3], 99, np.float32))
    np.testing.assert_allclose(
        outputs['probabilities'], 1 / (1 + np.exp(-outputs['logits'])), rtol=1e-5)
