"""main.py on real files: what it leaves, how it resumes, what it refuses."""
import io
import json
import os
import re
import shutil
import signal
import time

from conftest import LITE
from conftest import TINY
from conftest import assert_is_like_an_export
import numpy as np
from PIL import Image
import pytest
import tensorflow.compat.v1 as tf

from checkpoints import restore
from checkpoints import store
from checkpoints.best import best_evaluation
from config import run_config
from config import settings
from export import images as export_images
from export import loading
from export import trained_model
from run_log import event_log
import runtime as runtimes
from tfrecords import schema
from training.model_fn import model_fn


def events(model_dir, name):
    return [event for event in event_log.read(str(model_dir)) if event['event'] == name]


@pytest.mark.slow
def test_a_run_leaves_checkpoints_results_and_the_best(trained_dir):
    assert store.step_of(store.latest(trained_dir)) == 6
    evaluations = events(trained_dir, 'eval')
    assert [(event['step'], event['weights']) for event in evaluations] == [
        (3, 'raw'), (3, 'ema'), (6, 'raw'), (6, 'ema')]
    assert all(event['num_images'] == 1000 for event in evaluations)
    assert [event['step'] for event in events(trained_dir, 'train')] == [2, 4, 6]
    assert [event['step'] for event in events(trained_dir, 'train_stop')] == [6]
    assert events(trained_dir, 'run_stop')[-1]['status'] == 'finished'
    best = max((event for event in evaluations if event['weights'] == 'ema'),
               key=lambda event: event['top_1'])
    assert best_evaluation(trained_dir)['top_1'] == best['top_1']
    with open(os.path.join(trained_dir, 'config.json')) as file:
        config = json.load(file)
    assert config['model']['num_label_classes'] == 10
    assert config['data']['num_train_images'] == 4000


@pytest.mark.slow
def test_the_estimator_predicts_what_the_checkpoint_does(trained_dir):
    """For programs that have an Estimator: ours predict from a checkpoint or an export."""
    runtime = runtimes.select(run_config.load(trained_dir))
    images = export_images.generated(4, 32)
    with loading.from_trained(trained_model.from_checkpoint(store.latest(trained_dir))) as model:
        expected = model.predict(images)
    estimator = runtime.build_estimator(
        model_fn, dict(config=runtime.config, runtime=runtime, weights=restore.EMA))
    predicted = list(estimator.predict(
        lambda: tf.data.Dataset.from_tensor_slices(images).batch(2)))
    assert [set(prediction) for prediction in predicted] == [
        {'classes', 'probabilities', 'logits'}] * 4
    for name in ('probabilities', 'logits'):
        np.testing.assert_allclose(
            [prediction[name] for prediction in predicted], expected[name], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_training_moves_weights_averages_and_batch_norm(trained_dir):
    checkpoint = store.latest(trained_dir)
    reader = tf.train.load_checkpoint(checkpoint)
    initial = {'gamma': 1.0, 'beta': 0.0, 'moving_mean': 0.0, 'moving_variance': 1.0}
    scope = 'efficientnet-condconv-b0-4e'
    for leaf, value in initial.items():
        name = f'{scope}/head/tpu_batch_normalization/{leaf}'
        assert (reader.get_tensor(name) != value).any(), name
    # After steps with a decay of 0.5 the averages are near the weights, and yet not the weights.
    for leaf in ('dense/kernel', 'conv2d/kernel', 'tpu_batch_normalization/moving_mean'):
        raw = reader.get_tensor(f'{scope}/head/{leaf}')
        average = reader.get_tensor(f'{scope}/head/{leaf}/ExponentialMovingAverage')
        assert (raw != average).any()
        assert abs(raw - average).max() < abs(raw).max()


@pytest.mark.slow
def test_the_same_command_again_says_that_it_is_finished(run, digits_dir, trained_dir, tmp_path):
    model_dir = shutil.copytree(trained_dir, tmp_path / 'again')
    num_evaluations = len(events(model_dir, 'eval'))
    completed = run('main.py', f'--data_dir={digits_dir}', f'--model_dir={model_dir}', *TINY,
                    '--train_steps=6', '--steps_per_eval=3', '--moving_average_decay=0.5')
    assert completed.returncode == 0
    assert 'already finished' in completed.stderr
    assert len(events(model_dir, 'eval')) == num_evaluations
    assert events(model_dir, 'run_stop')[-1]['status'] == 'already_finished'


@pytest.mark.slow
def test_an_evaluation_that_a_kill_prevented_is_made_up_for(
        run, digits_dir, trained_dir, tmp_path):
    model_dir = shutil.copytree(trained_dir, tmp_path / 'again')
    kept = [event for event in event_log.read(str(model_dir))
            if not (event['event'] == 'eval' and event['step'] == 6)]
    with open(model_dir / event_log.RESULTS_FILE, 'w') as file:
        file.writelines(json.dumps(event) + '\n' for event in kept)
    run('main.py', f'--data_dir={digits_dir}', f'--model_dir={model_dir}', *TINY,
        '--train_steps=6', '--steps_per_eval=3', '--moving_average_decay=0.5')
    assert [event['step'] for event in events(model_dir, 'eval')] == [3, 3, 6, 6]


@pytest.mark.slow
def test_kill_9_and_the_same_command_end_at_the_same_step(run, start, digits_dir, tmp_path):
    command = ('main.py', '--mode=train_and_eval', f'--data_dir={digits_dir}',
               f'--model_dir={tmp_path}', *LITE, '--train_steps=60', '--steps_per_eval=60',
               '--save_checkpoints_steps=5', '--log_step_count_steps=5')
    process = start(*command)
    deadline = time.monotonic() + 200
    while store.step_of(store.latest(str(tmp_path))) < 10:
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    killed_at = store.step_of(store.latest(str(tmp_path)))
    assert 10 <= killed_at < 60

    completed = run(*command)
    assert completed.returncode == 0, completed.stderr
    assert f'Resuming from step {killed_at} of 60' in completed.stderr
    assert f'Restoring {tmp_path}/model.ckpt-{killed_at} took ' in completed.stderr
    assert store.step_of(store.latest(str(tmp_path))) == 60
    first_after = [event for event in events(tmp_path, 'train') if event['step'] > killed_at]
    assert first_after[-1]['step'] == 60
    assert {event['num_images'] for event in events(tmp_path, 'eval')} == {1000}


def write_as_tfds(folder, digits_dir):
    """Writes the validation shards of the digits as TensorFlow Datasets would, compressed."""
    os.mkdir(folder)
    for index, path in enumerate(schema.find_shards(digits_dir, schema.VALIDATION)):
        with tf.io.TFRecordWriter(
                f'{folder}/digits-test.tfrecord-{index:05d}-of-00002', 'GZIP') as writer:
            for record in tf.io.tf_record_iterator(path):
                ours, theirs = tf.train.Example.FromString(record).features.feature, {}
                theirs['image'] = ours[schema.IMAGE_ENCODED]
                theirs['file_name'] = ours[schema.IMAGE_FILENAME]
                theirs['label'] = ours[schema.CLASS_LABEL]
                theirs['label'].int64_list.value[0] -= 1
                writer.write(tf.train.Example(
                    features=tf.train.Features(feature=theirs)).SerializeToString())


@pytest.mark.slow
def test_eval_once_evaluates_the_last_checkpoint(run, digits_dir, trained_dir, tmp_path):
    model_dir = shutil.copytree(trained_dir, tmp_path / 'again')
    # A name that is no pattern, and labels from another number than those of the run.
    write_as_tfds(tmp_path / '[a]*?', digits_dir)
    completed = run('main.py', '--mode=eval', '--eval_once', f'--data_dir={tmp_path}/[a]*?',
                    '--eval_pattern=*-test.tfrecord-*',
                    f'--model_dir={model_dir}', *TINY, '--eval_name=extra',
                    '--moving_average_decay=0.5', '--eval_batch_size=7', '--label_smoothing=0.5')
    assert completed.returncode == 0, completed.stderr
    evaluations = events(model_dir, 'eval')
    assert [event['name'] for event in evaluations[-2:]] == ['extra', 'extra']
    # Neither the batch size nor the smoothing nor the process changes what the weights know.
    for before, now in zip(evaluations[2:4], evaluations[-2:]):
        assert now['num_images'] == before['num_images'] == 1000
        assert now['top_1'] == pytest.approx(before['top_1'], abs=0.002)
        assert now['cross_entropy'] == pytest.approx(before['cross_entropy'], rel=1e-3)


@pytest.mark.slow
def test_an_evaluation_of_another_name_is_not_the_runs_own(run, digits_dir, trained_dir, tmp_path):
    model_dir = shutil.copytree(trained_dir, tmp_path / 'again')
    best = best_evaluation(str(model_dir))
    results_path = model_dir / 'results.jsonl'
    lines = [json.loads(line) for line in results_path.read_text().splitlines()]
    for line in lines:
        if line['event'] == 'eval' and line['step'] == 6:
            line['name'] = 'other'
    results_path.write_text(''.join(f'{json.dumps(line)}\n' for line in lines))
    command = ['main.py', f'--data_dir={digits_dir}', f'--model_dir={model_dir}', *TINY,
               '--train_steps=6', '--steps_per_eval=3', '--moving_average_decay=0.5']
    completed = run(*command)
    assert completed.returncode == 0, completed.stderr
    assert [(event['step'], event['name']) for event in events(model_dir, 'eval')[-2:]] == [
        (6, None), (6, None)]
    assert best_evaluation(str(model_dir)) == best


@pytest.mark.slow
def test_num_eval_images_ends_the_evaluation_early(run, digits_dir, trained_dir, tmp_path):
    model_dir = shutil.copytree(trained_dir, tmp_path / 'again')
    config = (model_dir / 'config.json').read_text()
    completed = run('main.py', '--mode=eval', '--eval_once', f'--data_dir={digits_dir}',
                    f'--model_dir={model_dir}', *TINY, '--num_eval_images=130',
                    '--moving_average_decay=0', '--quiet')
    assert completed.returncode == 0, completed.stderr
    # --quiet: no errors, and the final line.
    assert not completed.stderr and re.fullmatch(
        r'Step 6, raw weights: top-1 \d\.\d{4} on 130 images\n', completed.stdout)
    assert events(model_dir, 'eval')[-1]['num_images'] == 130
    assert (model_dir / 'config.json').read_text() == config


@pytest.mark.slow
def test_evaluating_nothing_is_one_sentence(run, digits_dir, tmp_path):
    completed = run('main.py', '--mode=eval', '--eval_once', f'--data_dir={digits_dir}',
                    f'--model_dir={tmp_path}/run', *TINY)
    assert_one_sentence(completed, 1, f'{tmp_path}/run: contains no checkpoint')
    assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_eval_says_what_it_waits_for(run, digits_dir, tmp_path):
    completed = run('main.py', '--mode=eval', f'--data_dir={digits_dir}', f'--model_dir={tmp_path}',
                    *LITE, '--eval_timeout=1')
    assert completed.returncode == 1
    assert (f'Waiting for the first checkpoint in {tmp_path}, for up to 1 seconds'
            in completed.stderr)
    assert 'no checkpoint within 1 seconds; check the path' in completed.stderr


@pytest.mark.slow
def test_eval_follows_a_training_until_its_last_step(run, digits_dir, trained_dir, tmp_path):
    model_dir = shutil.copytree(trained_dir, tmp_path / 'again')
    completed = run('main.py', '--mode=eval', f'--data_dir={digits_dir}', '--train_steps=6',
                    f'--model_dir={model_dir}', *TINY, '--moving_average_decay=0')
    assert completed.returncode == 0, completed.stderr
    assert events(model_dir, 'eval')[-1]['weights'] == 'raw'
    waited = run('main.py', '--mode=eval', f'--data_dir={digits_dir}', '--train_steps=9',
                 f'--model_dir={model_dir}', *TINY, '--eval_timeout=2', '--moving_average_decay=0')
    assert waited.returncode == 0 and 'No new checkpoint' in waited.stderr


@pytest.mark.slow
def test_export_dir_writes_a_saved_model_at_the_end(run, digits_dir, tmp_path):
    completed = run('main.py', '--mode=train', f'--data_dir={digits_dir}',
                    f'--model_dir={tmp_path}/run', *TINY, '--train_steps=2',
                    '--mixup_alpha=0.2', '--transpose_input', f'--export_dir={tmp_path}/export')
    assert completed.returncode == 0, completed.stderr
    path, = [event['path'] for event in events(tmp_path / 'run', 'export')]
    assert path == f'{tmp_path}/export/2' and os.listdir(tmp_path / 'export') == ['2']
    assert 'max difference from the checkpoint' in completed.stderr
    assert_is_like_an_export(run, tmp_path / 'run', path, tmp_path)


def broken_label_dir(folder, digits_dir, label):
    """A data set whose one bad record comes later than those that are looked at beforehand."""
    for name in os.listdir(digits_dir):
        if name.startswith('validation') or name.endswith('.json'):
            shutil.copy(os.path.join(digits_dir, name), folder)
    with tf.io.TFRecordWriter(str(folder / schema.shard_name('train', 0, 1))) as writer:
        shard = schema.find_shards(digits_dir, 'train')[0]
        for index, record in enumerate(tf.io.tf_record_iterator(shard)):
            if index == 900:
                example = tf.train.Example.FromString(record)
                example.features.feature[schema.CLASS_LABEL].int64_list.value[:] = [label]
                record = example.SerializeToString()
            writer.write(record)
    return folder


def assert_one_sentence(completed, exit_code, *texts):
    assert completed.returncode == exit_code, completed.stderr
    lines = [line for line in completed.stderr.splitlines() if 'error:' in line]
    assert len(lines) == 1, completed.stderr
    assert 'Traceback' not in completed.stderr
    for text in texts:
        assert text in lines[0]


@pytest.mark.slow
def test_a_label_out_of_range_stops_the_run_with_one_sentence(run, digits_dir, tmp_path):
    (tmp_path / 'data').mkdir()
    data_dir = broken_label_dir(tmp_path / 'data', digits_dir, label=11)
    completed = run('main.py', '--mode=train', f'--data_dir={data_dir}',
                    f'--model_dir={tmp_path}/run', *LITE, '--train_steps=200')
    assert_one_sentence(completed, 1, 'label 11', '1..10')
    assert events(tmp_path / 'run', 'run_stop')[-1]['status'] == 'failed'


@pytest.mark.slow
@pytest.mark.parametrize('flags, exit_code, texts', [
    (['--no_such_flag'], 2, ['no_such_flag']),
    (['--batch_size=many'], 2, ['batch_size']),
    (['--model_name=efficientnet-b17'], 2, ['model_name', 'efficientnet-condconv-b0-4e']),
    (['--data_dir=/no/such/folder'], 1, ['/no/such/folder', 'does not exist']),
    (['stray'], 1, ['stray'])])
def test_wrong_flags_are_one_sentence(run, digits_dir, tmp_path, flags, exit_code, texts):
    completed = run('main.py', f'--data_dir={digits_dir}', f'--model_dir={tmp_path}/run', *TINY,
                    '--train_steps=1', *flags)
    assert_one_sentence(completed, exit_code, *texts)
    assert not (tmp_path / 'run').exists()


def test_help_shows_twenty_flags_and_helpfull_all(run):
    first = [line.split()[0][2:] for line in run('main.py', '--help').stdout.splitlines()
             if line.startswith('--') and not line.startswith('--helpfull')]
    names = {field.name for fields in settings.by_group().values() for field in fields}
    assert len(first) == len(set(first)) == 20 and set(first) < names
    shown = run('main.py', '--helpfull').stdout
    assert all(re.search(rf'--(\[no\])?{name}\b', shown) for name in names)


@pytest.mark.slow
@pytest.mark.parametrize('flags, texts', [
    (['--model_name=efficientnet-condconv-b0-8e'], ['efficientnet-condconv-b0-8e']),
    (['--width_coefficient=0.5'], ['--width_coefficient=0.25 (now 0.5)'])])
def test_a_model_dir_of_another_model_is_refused(
        run, digits_dir, trained_dir, tmp_path, flags, texts):
    model_dir = shutil.copytree(trained_dir, tmp_path / 'run')
    before = sorted(os.listdir(model_dir))
    completed = run('main.py', f'--data_dir={digits_dir}', f'--model_dir={model_dir}', *TINY,
                    '--train_steps=9', '--max_bad_records=1', *flags)
    assert_one_sentence(completed, 1, *texts)
    assert 'reading all records' not in completed.stderr, 'the data, which takes long, came first'
    assert sorted(os.listdir(model_dir)) == before


@pytest.mark.slow
def test_a_name_that_is_not_utf_8_is_one_sentence(run, digits_dir, tmp_path):
    completed = run('main.py', f'--data_dir={digits_dir}', f'--model_dir={tmp_path}/\udcff')
    assert_one_sentence(completed, 2, "udcff' is not UTF-8")


@pytest.mark.slow
def test_a_model_dir_that_cannot_be_made_is_one_sentence(run, digits_dir, tmp_path):
    (tmp_path / 'file').write_text('in the way')
    completed = run('main.py', f'--data_dir={digits_dir}', f'--model_dir={tmp_path}/file/run',
                    *TINY, '--train_steps=1')
    assert_one_sentence(completed, 1, f'{tmp_path}/file/run')


@pytest.mark.slow
def test_averages_that_were_not_kept_cannot_go_on(run, digits_dir, tmp_path):
    command = ('main.py', '--mode=train', f'--data_dir={digits_dir}', f'--model_dir={tmp_path}',
               *LITE, '--moving_average_decay=0', '--quiet')
    completed = run(*command, '--train_steps=1')
    assert completed.returncode == 0, completed.stderr
    assert completed.stderr == '' and completed.stdout == (
        f'Trained to step 1 of 1: {tmp_path}/model.ckpt-1\n')
    assert [event['step'] for event in events(tmp_path, 'train')] == [1]
    refused = run(*command, '--train_steps=2', '--moving_average_decay=0.5')
    assert_one_sentence(refused, 1, 'was trained with --moving_average_decay=0.0 (now 0.5)')
    assert len(refused.stderr.splitlines()) == 1 and not refused.stdout


@pytest.mark.slow
def test_fine_tuning_starts_from_a_checkpoint_and_keeps_what_is_frozen(
        run, digits_dir, trained_dir, tmp_path):
    command = ('main.py', '--mode=train', f'--data_dir={digits_dir}', *TINY, '--train_steps=2',
               '--head_learning_rate_multiplier=3', '--moving_average_decay=0.5')
    model_dir = str(tmp_path / 'run')
    assert_one_sentence(run(*command, f'--model_dir={model_dir}', '--freeze=all_but_head'), 1,
                        '--freeze: random weights would be frozen')
    assert not os.path.exists(model_dir)
    completed = run(*command, f'--model_dir={model_dir}', '--freeze=all_but_head',
                    f'--init_checkpoint={trained_dir}')
    assert completed.returncode == 0, completed.stderr
    start = tf.train.load_checkpoint(store.latest(trained_dir))
    end = tf.train.load_checkpoint(store.latest(model_dir))
    names = [name for name in end.get_variable_to_shape_map() if name.endswith(
        ('kernel', 'gamma', 'beta', 'bias', 'moving_mean', 'moving_variance'))]
    for name in names:
        # The start is the averaged weights, and the average of what does not move is itself.
        same = (end.get_tensor(name) == start.get_tensor(f'{name}/ExponentialMovingAverage')).all()
        assert same == ('/head/' not in name), name
        if '/head/' not in name:
            assert (end.get_tensor(f'{name}/ExponentialMovingAverage')
                    == end.get_tensor(name)).all()
    assert any('/model/blocks_' in name for name in names)
    assert_one_sentence(run(*command, f'--model_dir={model_dir}'), 1, '--freeze=all_but_head')


def bad_data_dir(folder, digits_dir):
    """The digits with a GIF, a truncated JPEG and a CMYK JPEG late in a shard, and an empty one.

    Returns:
        (str, list): the folder, and (shard, index, words) of each bad record.
    """
    shards = schema.find_shards(digits_dir, schema.TRAIN)
    shutil.copytree(digits_dir, folder)
    file = io.BytesIO()
    Image.new('CMYK', (28, 28)).save(file, 'JPEG')
    records = list(tf.io.tf_record_iterator(shards[0]))
    jpeg = tf.train.Example.FromString(
        records[0]).features.feature[schema.IMAGE_ENCODED].bytes_list.value[0]
    faults = {200: (b'GIF89a', 'neither a JPEG nor a PNG'),
              300: (jpeg[:200], 'cannot be decoded'), 400: (file.getvalue(), 'CMYK')}
    path = os.path.join(folder, os.path.basename(shards[0]))
    with tf.io.TFRecordWriter(path) as writer:
        for index, record in enumerate(records):
            if index in faults:
                example = tf.train.Example.FromString(record)
                example.features.feature[schema.IMAGE_ENCODED].bytes_list.value[:] = [
                    faults[index][0]]
                record = example.SerializeToString()
            writer.write(record)
    return str(folder), [(path, index, words) for index, (_, words) in faults.items()]


@pytest.mark.slow
def test_a_bad_record_stops_the_run_with_its_name(run, digits_dir, tmp_path):
    data_dir, bad = bad_data_dir(tmp_path / 'data', digits_dir)
    completed = run('main.py', '--mode=train', f'--data_dir={data_dir}',
                    f'--model_dir={tmp_path}/run', *LITE, '--train_steps=400')
    path, index, words = bad[0]
    assert_one_sentence(completed, 1, f'{path}: record {index} ', words, '--max_bad_records')
    assert events(tmp_path / 'run', 'run_stop')[-1]['status'] == 'failed'


@pytest.mark.slow
def test_bad_records_are_skipped_up_to_the_limit_and_counted(run, digits_dir, tmp_path):
    data_dir, bad = bad_data_dir(tmp_path / 'data', digits_dir)
    empty = schema.find_shards(data_dir, schema.VALIDATION)[1]
    with open(empty, 'wb'):
        bad.append((empty, 0, 'zero bytes'))
    flags = (f'--data_dir={data_dir}', f'--model_dir={tmp_path}/run', *LITE, '--train_steps=3',
             '--moving_average_decay=0')
    refused = run('main.py', *flags, '--max_bad_records=3')
    assert_one_sentence(refused, 1, empty, 'zero bytes', '--max_bad_records=3')
    assert not (tmp_path / 'run').exists()

    completed = run('main.py', *flags, '--max_bad_records=4')
    assert completed.returncode == 0, completed.stderr
    assert '4 bad records were skipped' in completed.stderr
    for path, index, words in bad:
        line, = [line for line in completed.stderr.splitlines()
                 if f'{path}: record {index} ' in line]
        assert words in line
    assert [(event['path'], event['index']) for event in events(tmp_path / 'run', 'bad_record')
            ] == [(path, index) for path, index, _ in bad]
    assert events(tmp_path / 'run', 'run_stop')[-1]['bad_records'] == 4
    evaluation, = events(tmp_path / 'run', 'eval')
    assert evaluation['num_images'] == 500


@pytest.mark.slow
def test_synthetic_images_and_the_input_stall(run, tmp_path):
    completed = run('main.py', '--data_dir=synthetic', f'--model_dir={tmp_path}', *TINY,
                    '--train_steps=6', '--log_step_count_steps=2', '--log_input_stall',
                    '--num_eval_images=100', '--moving_average_decay=0')
    assert completed.returncode == 0, completed.stderr
    assert len(re.findall(r'step \d/6 .* input stall \d+%', completed.stderr)) == 3
    stalls = [event['input_stall'] for event in events(tmp_path, 'train')]
    assert len(stalls) == 3 and all(0 <= stall < 0.2 for stall in stalls)
    assert events(tmp_path, 'eval')[-1]['num_images'] == 100


@pytest.mark.slow
def test_a_seed_makes_two_runs_equal_bit_for_bit(run, digits_dir, tmp_path):
    """In a process each, with everything that is random; that another seed gives other batches is
    tested with the input."""
    weights = []
    for name in ('first', 'again'):
        completed = run(
            'main.py', '--mode=train', f'--data_dir={digits_dir}', f'--model_dir={tmp_path}/{name}',
            *TINY, '--train_steps=4', '--random_seed=5', '--augment_name=autoaugment',
            '--mixup_alpha=0.2', '--dropout_rate=0.25', '--survival_prob=0.8')
        assert completed.returncode == 0, completed.stderr
        reader = tf.train.load_checkpoint(store.latest(f'{tmp_path}/{name}'))
        weights.append({key: reader.get_tensor(key).tobytes()
                        for key in reader.get_variable_to_shape_map()})
    assert weights[0] == weights[1]
