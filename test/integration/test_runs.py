"""A run's settings belong to the run: what goes on from it, or reads it, knows them."""
import csv
import json
import os
import re
import shutil

from conftest import LEARNING
from conftest import TINY
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from checkpoints import store
from checkpoints.best import best_evaluation
from dataset import digits
from run_log import evaluation_table
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
        if batch_size == 48 and 'Settings changed' in completed.stderr:
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


def by_step(model_dir, step):
    """The evaluations of a step, without their times."""
    return [{key: value for key, value in event.items() if key != 'time'}
            for event in events(model_dir, 'eval') if event['step'] == step]


def evaluate(run, model_dir, *flags):
    completed = run(
        'main.py', '--mode=eval', '--eval_once', f'--model_dir={model_dir}', *flags)
    assert completed.returncode == 0, completed.stderr
    return completed


@pytest.mark.slow
def test_an_evaluation_without_flags_is_the_runs_own(run, digits_dir, trained_dir, tmp_path):
    """Model, multipliers, image size, batch size, classes and moving average are the run's."""
    model_dir = shutil.copytree(trained_dir, tmp_path / 'again')
    expected = by_step(model_dir, 6)
    evaluate(run, model_dir, f'--data_dir={digits_dir}')
    evaluate(run, model_dir, f'--per_class_csv={tmp_path}/classes.csv')
    assert by_step(model_dir, 6) == expected * 3
    with open(tmp_path / 'classes.csv') as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ['class', 'name', 'precision', 'recall', 'f1', 'support']
    assert [row['name'] for row in rows] == list(digits.CLASS_NAMES)
    assert {row['support'] for row in rows} == {'100'}
    # The averaged weights are evaluated last.
    assert np.mean([float(row['recall']) for row in rows]) == pytest.approx(expected[-1]['top_1'])


@pytest.mark.slow
def test_other_preprocessing_is_a_row_of_its_own_and_never_the_best(
        run, digits_dir, trained_dir, tmp_path):
    model_dir = shutil.copytree(trained_dir, tmp_path / 'again')
    best = best_evaluation(str(model_dir))
    shutil.rmtree(model_dir / 'archive')
    completed = evaluate(run, model_dir, f'--data_dir={digits_dir}', '--input_image_size=48')
    assert "--input_image_size=48 overrides the run's value, 32." in completed.stderr
    assert [event.get('image_size') for event in events(model_dir, 'eval')[-2:]] == [48, 48]
    assert not (model_dir / 'archive' / 'best_eval.json').exists()
    rows = evaluation_table.rows(event_log.read(str(model_dir)), str(model_dir))
    assert [(row.step, row.image_size) for row in rows] == [(3, None), (6, None), (6, 48)]
    assert [row.step for row in rows if row.is_best] == [best['step']] and not rows[-1].is_best
    assert 'image size' in completed.stdout


@pytest.mark.slow
def test_epochs_of_an_evaluation_are_the_runs(run, tmp_path):
    """Whatever batch size, machine or data the evaluation has."""
    assert run('main.py', *SYNTHETIC, f'--model_dir={tmp_path}', '--batch_size=32',
               '--train_epochs=1', '--num_eval_images=40').returncode == 0
    evaluate(run, tmp_path, '--batch_size=8')
    evaluate(run, tmp_path, '--data_dir=synthetic', '--num_train_images=7',
             '--num_eval_images=9')
    assert {(event['epoch'], event['num_images']) for event in events(tmp_path, 'eval')} == {
        (1.0, 40), (1.0, 9)}


@pytest.mark.slow
@pytest.mark.parametrize('held, words', [
    ('averages', 'has no trained weights; using the averaged ones'),
    ('weights', 'has no averaged weights; using the trained ones')])
def test_a_checkpoint_of_one_kind_of_weights_does_everywhere(
        run, digits_dir, trained_dir, tmp_path, held, words):
    """Without a global step and a config.json too: the checkpoint itself says what it is."""
    model_dir = tmp_path / 'run'
    model_dir.mkdir()
    keep_weights(trained_dir, model_dir, held)
    sizes = ('--width_coefficient=0.25', '--depth_coefficient=0.25', '--input_image_size=32')
    enable_ema = f"--enable_ema={'false' if held == 'averages' else 'true'}"
    unknown = run('main.py', '--mode=eval', '--eval_once', f'--model_dir={model_dir}',
                      f'--data_dir={digits_dir}', *sizes)
    assert unknown.returncode == 0 and events(model_dir, 'eval')[0]['num_images'] == 1000
    shutil.copy(f'{trained_dir}/config.json', model_dir)
    completed = evaluate(run, model_dir, f'--data_dir={digits_dir}', *sizes)
    assert words in completed.stderr and len(events(model_dir, 'eval')) == 2
    exported = run('export_model.py', f'--ckpt_dir={model_dir}',
                       f'--output_dir={tmp_path}/export', enable_ema)
    assert exported.returncode == 0 and words in exported.stderr, exported.stderr
    predicted = run('predict.py', f'--checkpoint={model_dir}', f'--data_dir={digits_dir}',
                        enable_ema)
    assert predicted.returncode == 0, predicted.stderr
    assert f"top-1 {events(model_dir, 'eval')[-1]['top_1']:.4f}" in predicted.stdout
    training = 'main.py', '--mode=train', f'--data_dir={digits_dir}', *TINY
    # The model of the checkpoint, with its multipliers.
    started = run(*(flag for flag in training if not re.match('--(model|width|depth)', flag)),
                      '--train_steps=1', f'--init_checkpoint={model_dir}',
                      f'--model_dir={tmp_path}/started')
    assert started.returncode == 0, started.stderr
    assert read_config(tmp_path / 'started')['model'] == read_config(model_dir)['model']
    refused = run(*training, '--train_steps=9', f'--model_dir={model_dir}')
    assert refused.returncode == 1
    assert 'contains weights but no training state to resume from' in refused.stderr


def keep_weights(trained_dir, model_dir, held):
    """Writes a run's checkpoint with its averages alone, or with the weights and statistics."""
    saved = tf.train.load_checkpoint(store.latest(trained_dir))
    ending = '/ExponentialMovingAverage'
    averaged = {name[:-len(ending)] for name in saved.get_variable_to_shape_map()
                if name.endswith(ending)}
    names = sorted(name + ending if held == 'averages' else name for name in averaged)
    path = str(model_dir / 'model.ckpt')
    with tf.Graph().as_default(), tf.Session() as session:
        session.run(tf.raw_ops.SaveV2(
            prefix=path, tensor_names=names, shape_and_slices=[''] * len(names),
            tensors=[saved.get_tensor(name) for name in names]))
    tf.train.update_checkpoint_state(str(model_dir), path)


@pytest.mark.slow
def test_what_a_checkpoint_says_need_not_be_given(run, trained_dir, tmp_path):
    """The model by its variables' names, the classes by its classifier; what differs is refused."""
    model_dir = tmp_path / 'run'
    shutil.copytree(trained_dir, model_dir)
    for program, flags in (('predict.py', ['--data_dir=none']), ('export_model.py', [
            f'--output_dir={tmp_path}/export'])):
        refused = run(program, f'--checkpoint={model_dir}', '--num_label_classes=7', *flags)
        assert refused.returncode == 1
        assert 'has 10 classes, not 7; change --num_label_classes' in refused.stderr
    refused = run('inspect_model_architecture.py', f'--checkpoint={model_dir}',
                      '--data_dir=none', '--num_classes=7')
    assert refused.returncode == 1 and 'has 10 classes, not 7' in refused.stderr
    refused = run('main.py', '--mode=eval', '--eval_once', f'--model_dir={model_dir}',
                  '--num_label_classes=7', '--data_dir=synthetic')
    assert refused.returncode == 1 and '10' in refused.stderr and '7' in refused.stderr


@pytest.mark.slow
def test_other_class_names_are_refused_or_mapped(run, digits_dir, learned_dir, tmp_path):
    """In evaluation, prediction and training that goes on; a resume never overwrites the names."""
    model_name = 'efficientnet-condconv-b0-4e'
    model_dir = shutil.copytree(learned_dir(model_name), tmp_path / 'run')
    own = by_step(model_dir, 120)
    names = read_config(model_dir)['class_names']
    data_dir = tmp_path / 'data'
    data_dir.mkdir()
    for name in os.listdir(digits_dir):
        if name != 'dataset_info.json':
            (data_dir / name).symlink_to(os.path.join(digits_dir, name))
    info = json.loads(open(f'{digits_dir}/dataset_info.json').read())
    (data_dir / 'dataset_info.json').write_text(json.dumps({**info, 'class_names': names[::-1]}))
    training = ('main.py', '--mode=train', f'--data_dir={data_dir}', f'--model_dir={model_dir}',
                f'--model_name={model_name}', *LEARNING, '--train_steps=121')
    evaluation = 'main.py', '--mode=eval', '--eval_once', *training[2:4]
    prediction = 'predict.py', f'--checkpoint={model_dir}', f'--data_dir={data_dir}'
    for command in (training, evaluation, prediction):
        refused = run(*command)
        assert refused.returncode == 1
        assert f'class 0 was {names[0]!r} and is {names[-1]!r}, class 1 was' in refused.stderr
        assert '--class_names_from=model' in refused.stderr and 'Trace' not in refused.stderr
    assert run(*evaluation, '--class_names_from=data').returncode == 0
    assert by_step(model_dir, 120) == own * 2
    assert run(*evaluation, '--class_names_from=model').returncode == 0
    mapped = by_step(model_dir, 120)[-1]
    assert mapped['top_1'] < own[-1]['top_1'] - 0.1
    predicted = run(*prediction, '--class_names_from=model')
    assert f"top-1 {mapped['top_1']:.4f}" in predicted.stdout
    assert run(*training, '--class_names_from=data').returncode == 0
    assert read_config(model_dir)['class_names'] == names
