"""main.py --mode=lr_range: a suggestion and a picture, and a run that stays as it was."""
import hashlib
import os
import shutil

from conftest import TINY
import numpy as np
from PIL import Image
import pytest

from run_log import event_log

pytestmark = pytest.mark.slow
MODE = ('--mode=lr_range', '--random_seed=1')
# A network that learns in a few steps.
LEARNING = ('--batch_norm_momentum=0.8', '--routing_init_stddev=0.01', '--norandom_flip',
            '--min_crop_area=0.7', '--survival_prob=1', '--moving_average_decay=0.5')


def files_of(folder):
    """Path -> digest of the content of all files in a folder but those of the range test."""
    found = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            with open(path, 'rb') as file:
                found[os.path.relpath(path, folder)] = hashlib.sha256(file.read()).hexdigest()
    return {path: digest for path, digest in found.items() if not path.startswith('lr_range/')}


def test_a_range_test_leaves_the_run_alone_and_repeats_itself(
        run, digits_dir, trained_dir, tmp_path):
    model_dir = tmp_path / 'run'
    shutil.copytree(trained_dir, model_dir)
    before = files_of(model_dir)
    command = ('main.py', f'--data_dir={digits_dir}', f'--model_dir={model_dir}', *TINY, *MODE,
               *LEARNING, '--lr_range_steps=80', '--lr_range_min=1e-4', '--lr_range_max=3',
               '--train_epochs=350', f'--export_dir={tmp_path}/export')
    for _ in range(2):
        completed = run(*command)
        assert completed.returncode == 0, completed.stderr
    assert files_of(model_dir) == before and not os.path.exists(tmp_path / 'export')
    folder = model_dir / 'lr_range'
    assert not [name for name in os.listdir(folder) if name.startswith(('model.ckpt', 'checkp'))]
    assert Image.open(folder / 'lr_range.png').size == (640, 400)

    events = event_log.read(str(folder))
    steps = [event for event in events if event['event'] == 'train']
    assert [event['step'] for event in steps] == 2 * list(range(1, 81))
    np.testing.assert_allclose([event['learning_rate'] for event in steps[:80]],
                               np.geomspace(1e-4, 3, 80) * 32 / 256, rtol=1e-5)
    first, second = (event for event in events if event['event'] == 'lr_range')
    suggested = first['suggested_base_learning_rate']
    assert suggested == second['suggested_base_learning_rate'] and 1e-3 < suggested < 0.1
    assert f'Suggested: --base_learning_rate={suggested:.2g}, where' in completed.stderr
    assert 'learning rate from 1.25e-05 to 0.375' in completed.stderr


def test_a_loss_that_is_not_finite_ends_the_test(run, digits_dir, tmp_path):
    completed = run('main.py', f'--data_dir={digits_dir}', f'--model_dir={tmp_path}', *TINY, *MODE,
                    '--lr_range_steps=20', '--lr_range_min=10', '--lr_range_max=1000',
                    '--optimizer=momentum', '--moving_average_decay=0',
                    '--weight_decay=1')
    assert completed.returncode == 0, completed.stderr
    assert 'no longer finite' in completed.stderr
    assert 'the loss does not fall by more than its noise' in completed.stderr
    events = event_log.read(f'{tmp_path}/lr_range')
    assert [event['event'] for event in events[-2:]] == ['lr_range', 'run_stop']
    assert events[-1]['status'] == 'finished'
    assert 5 < sum(event['event'] == 'train' for event in events) < 20
    assert os.listdir(tmp_path) == ['lr_range']
