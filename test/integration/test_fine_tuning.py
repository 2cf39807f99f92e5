"""When a run stops, which checkpoint is its best, and classes of different sizes."""
import json
import os
import shutil

from conftest import TINY
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from test_workers import free_ports

from checkpoints import store
from run_log import event_log

# A network that learns nothing: no evaluation is better than the first.
STUCK = ('main.py', '--data_dir=synthetic', '--num_label_classes=10', '--num_eval_images=8',
         '--model_name=efficientnet-lite0', '--width_coefficient=0.25', '--depth_coefficient=0.25',
         '--input_image_size=16', '--batch_size=4', '--base_learning_rate=1e-12',
         '--batch_norm_momentum=0.999999999', '--moving_average_decay=0', '--steps_per_eval=2',
         '--train_steps=40', '--random_seed=1')


def events(model_dir, name):
    return [event for event in event_log.read(str(model_dir)) if event['event'] == name]


@pytest.mark.slow
def test_a_run_stops_early_and_counts_on_after_a_pause(run, tmp_path):
    """Nothing is better than step 2, neither 3, where the first run ends, nor 4."""
    def train(num_evals, *more):
        completed = run(
            *STUCK, f'--model_dir={tmp_path}/run', f'--early_stopping_evals={num_evals}',
            f'--export_dir={tmp_path}/export', *more)
        assert completed.returncode == 0, completed.stderr
        stop = events(tmp_path / 'run', 'run_stop')[-1]
        evaluations = [event['step'] for event in events(tmp_path / 'run', 'eval')]
        return completed, stop['status'], stop['step'], evaluations

    assert train(2, '--train_steps=3', '--export_dir=')[1:] == ('finished', 3, [2, 3])
    completed, *ended = train(2)
    assert ended == ['early_stopped', 4, [2, 3, 4]]
    assert 'step 4 of 40: 2 evaluations in a row without a better top_1 than' in completed.stderr
    assert 'resumes from there' not in completed.stderr and 'Best: step 2' in completed.stdout
    assert store.step_of(store.latest(str(tmp_path / 'run'))) == 4
    exports = os.listdir(tmp_path / 'export')
    assert len(exports) == 1
    completed, *ended = train(2)
    assert ended == ['already_finished', 4, [2, 3, 4]]
    assert 'already finished' in completed.stderr and '2 evaluations in a row' in completed.stderr
    assert os.listdir(tmp_path / 'export') == exports


@pytest.mark.slow
def test_two_ranks_stop_early_together(start, run, tmp_path):
    """After the step that follows the evaluation; and each knows when it is started again."""
    hosts = [f'127.0.0.1:{port}' for port in free_ports(2)]
    command = *STUCK, f'--model_dir={tmp_path}/run', '--early_stopping_evals=1'
    clusters = [json.dumps({'cluster': {'worker': hosts},
                            'task': {'type': 'worker', 'index': rank}}) for rank in range(2)]
    leader = start(*command, TF_CONFIG=clusters[0])
    follower = run(*command, TF_CONFIG=clusters[1])
    output, _ = leader.communicate(timeout=200)
    assert (leader.returncode, follower.returncode) == (0, 0), output + follower.stderr
    for text in (output, follower.stderr):
        assert 'step 5 of 40: 1 evaluation in a row' in text
    stop = events(tmp_path / 'run', 'run_stop')[-1]
    assert (stop['status'], stop['step']) == ('early_stopped', 5)
    for cluster in clusters[::-1]:
        again = run(*command, TF_CONFIG=cluster)
        assert again.returncode == 0 and 'already finished' in again.stderr
    assert events(tmp_path / 'run', 'run_stop')[-1]['status'] == 'already_finished'
    assert [event['step'] for event in events(tmp_path / 'run', 'eval')] == [2, 4]


@pytest.mark.slow
def test_the_checkpoint_of_the_smallest_loss_is_the_best(run, tmp_path):
    """The one that --best_metric names is in the archive, an evaluation of its own included."""
    flags = [flag for flag in STUCK if 'rate=1e-12' not in flag and 'train_steps' not in flag]
    completed = run(*flags, f'--model_dir={tmp_path}', '--best_metric=loss', '--train_steps=6',
                    '--base_learning_rate=2', '--batch_norm_momentum=0.5')
    assert completed.returncode == 0, completed.stderr
    evaluations = events(tmp_path, 'eval')
    best = min(evaluations, key=lambda event: event['cross_entropy'])
    with tf.gfile.GFile(str(tmp_path / 'archive' / 'best_eval.json')) as file:
        archived = json.load(file)
    assert {name: archived[name] for name in ('step', 'cross_entropy', 'macro_f1')} == {
        name: best[name] for name in ('step', 'cross_entropy', 'macro_f1')}
    assert f"Best: step {best['step']}, cross entropy {best['cross_entropy']:.4f}" in (
        completed.stdout)


@pytest.mark.slow
def test_balanced_runs_count_once_and_go_on_bit_for_bit(run, digits_dir, tmp_path):
    """Digits have 400 images of each class. Weights of a file go with drawn records."""
    def train(name, *flags):
        completed = run('main.py', f'--data_dir={digits_dir}', f'--model_dir={tmp_path}/{name}',
                        *TINY, '--mode=train', '--random_seed=1', *flags)
        assert completed.returncode == 0, completed.stderr
        return completed.stderr

    counting = 'Counting the training images of each class'
    weighted = train('weighted', '--class_weights=balanced', '--train_steps=1')
    assert counting in weighted and '400 (zero) to 400 (zero) images per class' in weighted
    assert 'weights each class as 400' in weighted
    (tmp_path / 'weights.csv').write_text(''.join(f'{number},0.5\n' for number in range(10)))
    shutil.copytree(tmp_path / 'weighted', tmp_path / 'again')
    trained = []
    for name in 'weighted', 'again':
        resumed = train(name, '--sampling=balanced', f'--class_weights={tmp_path}/weights.csv',
                        '--train_steps=3')
        assert counting not in resumed and 'draws 400 per class and epoch' in resumed
        assert 'class weights in the loss: 0.5 (zero) to 0.5 (zero), mean 0.5' in resumed
        reader = tf.train.load_checkpoint(store.latest(str(tmp_path / name)))
        trained.append({key: reader.get_tensor(key) for key in reader.get_variable_to_shape_map()})
    for key, value in trained[0].items():
        np.testing.assert_array_equal(value, trained[1][key], err_msg=key)


@pytest.mark.slow
def test_a_run_with_micro_batches_counts_their_images_and_goes_on(run, tmp_path):
    """With AdamW and clipping; two steps of two micro-batches, then two of one."""
    def train(num_micro_batches, num_steps):
        completed = run(
            *STUCK, f'--model_dir={tmp_path}/run', '--mode=train', '--num_train_images=48',
            '--optimizer=adamw', '--gradient_clip_norm=1', '--log_step_count_steps=1',
            f'--gradient_accumulation_steps={num_micro_batches}', f'--train_steps={num_steps}')
        assert completed.returncode == 0, completed.stderr
        return completed.stderr

    assert '8 images (4 in each of 2 micro-batches)' in train(2, 2)
    assert '--gradient_accumulation_steps' in train(1, 4)
    epochs = {event['step']: event['epoch'] for event in events(tmp_path / 'run', 'train')}
    assert epochs == pytest.approx({1: 8 / 48, 2: 16 / 48, 3: 20 / 48, 4: 24 / 48}, abs=1e-3)
    names = store.shapes(store.latest(str(tmp_path / 'run')))
    assert any(name.endswith('/Adam_1') for name in names)
    assert not any('beta1_power' in name for name in names)
