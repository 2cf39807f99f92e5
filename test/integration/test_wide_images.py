"""A run on images that are wider than high, normalized as AdvProp's: all programs take it so."""
import csv
import json
import os

from conftest import TINY
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from checkpoints import restore
from checkpoints import store
from checkpoints.best import best_evaluation
from config import network as networks
import efficientnet_builder
from export import images as export_images
from export import loading
from export import trained_model
from inspect_model_architecture import inspect
import model_builder_factory
from run_log import evaluation_table
from run_log import event_log

pytestmark = pytest.mark.slow

NAME = 'efficientnet-condconv-b0-4e'
NUM_IMAGES = 1000
WIDE = (*TINY, '--input_image_size=32x48', '--advprop_preprocessing=true')


def good(completed):
    assert completed.returncode == 0, completed.stderr
    return completed


@pytest.fixture(scope='module')
def wide_dir(run, digits_dir, tmp_path_factory):
    """The model_dir of such a run, with most of what looks at an image's height and width."""
    model_dir = str(tmp_path_factory.mktemp('wide') / 'run')
    completed = good(run(
        'main.py', f'--data_dir={digits_dir}', f'--model_dir={model_dir}', *WIDE,
        '--train_steps=4', '--moving_average_decay=0.5', '--batch_norm_momentum=0.5',
        '--base_learning_rate=0.1', '--transpose_input',
        '--mixup_alpha=0.2'))
    assert 'multiply-adds per image of 32x48 pixels' in completed.stderr
    return model_dir


@pytest.fixture(scope='module')
def exported_dir(run, wide_dir, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp('wide_exports'))
    good(run('export_model.py', f'--ckpt_dir={wide_dir}', f'--output_dir={folder}',
             '--formats=saved_model,frozen,tflite,onnx', '--batch_sizes=4', '--aipp'))
    return folder


@pytest.fixture(scope='module')
def pixels_and_labels(digits_dir):
    """The validation images as evaluation crops them, and their classes."""
    images = list(export_images.of_split(digits_dir, 'validation'))
    with export_images.Decoder((32, 48), 'bicubic') as decoder:
        _, pixels, _ = decoder.decode_all(images)
    return pixels, np.array([image.label for image in images]) - 1


def logits_of_numpy(checkpoint, images):
    """Logits of the averaged weights for images that NumPy has normalized by Google's formula."""
    network = networks.of_checkpoint(checkpoint)
    with tf.Graph().as_default(), tf.Session() as session:
        logits, _ = model_builder_factory.get_model_builder(NAME).build_model(
            tf.constant(images * np.float32(2) / np.float32(255) - np.float32(1)), NAME,
            training=False, override_params=network.overrides)
        restore.weights_saver(restore.EMA, checkpoint).restore(session, checkpoint)
        return session.run(logits)


def test_evaluation_and_every_export_are_numpys(wide_dir, exported_dir, pixels_and_labels):
    pixels, labels = pixels_and_labels
    assert pixels.shape == (NUM_IMAGES, 32, 48, 3)
    expected = logits_of_numpy(store.latest(wide_dir), pixels)
    event = [event for event in event_log.read(wide_dir) if event['event'] == 'eval'][-1]
    above = expected - expected.max(1, keepdims=True)
    log_probabilities = above - np.log(np.exp(above).sum(1, keepdims=True))
    assert event['weights'] == 'ema' and event['num_images'] == NUM_IMAGES
    assert event['cross_entropy'] == pytest.approx(
        -log_probabilities[np.arange(NUM_IMAGES), labels].mean(), rel=1e-5)
    # The model's own normalization is seen in the logits.
    plain = trained_model.from_checkpoint(store.latest(wide_dir), normalization='')
    with loading.from_trained(plain) as model:
        other = model.predict(pixels)['logits']
    scale = np.abs(expected).max()
    assert np.abs(other - expected).max() > 2e-4 * scale
    for name in ('4', f'{NAME}.pb', f'{NAME}_bs4.pb', f'{NAME}.tflite', f'{NAME}.onnx'):
        with loading.load(os.path.join(exported_dir, name)) as model:
            assert model.image_size == (32, 48), name
            assert model.description['image_size'] == '32x48'
            assert model.description['normalization'] == efficientnet_builder.ADVPROP
            np.testing.assert_allclose(model.predict(pixels[:96])['logits'], expected[:96], rtol=0,
                                       atol=2e-5 * scale, err_msg=name)
    with open(os.path.join(exported_dir, 'convert.sh')) as file:
        assert '"image:4,32,48,3"' in file.read()


def test_prediction_takes_the_size_and_normalization_of_the_run(
        run, wide_dir, exported_dir, digits_dir, tmp_path):
    image = f'{digits_dir}/examples/one_0.jpg'
    tables = []
    for model in (f'--checkpoint={wide_dir}', f'--saved_model={exported_dir}/{NAME}.onnx',
                  f'--checkpoint={wide_dir} --image_size=32x48 --advprop_preprocessing',
                  f'--checkpoint={wide_dir} --image_size=48x32',
                  f'--checkpoint={wide_dir} --noadvprop_preprocessing'):
        good(run('predict.py', *model.split(), f'--csv={tmp_path}/x.csv', image))
        with open(tmp_path / 'x.csv') as file:
            row, = csv.DictReader(file)
        tables.append([float(row[f'probability_{rank}']) for rank in range(1, 6)])
    assert tables[1] == pytest.approx(tables[0], abs=2e-6) and tables[2] == tables[0]
    assert tables[3] != pytest.approx(tables[0], abs=2e-6)
    assert tables[4] != pytest.approx(tables[0], abs=2e-6)
    refused = run('predict.py', f'--saved_model={exported_dir}/4', '--advprop_preprocessing', image)
    assert refused.returncode == 1 and '--advprop_preprocessing: applies only to --checkpoint' in (
        refused.stderr)


def test_offline_inputs_have_the_size(run, wide_dir, exported_dir, digits_dir, tmp_path):
    graph = f'--frozen_graph={exported_dir}/{NAME}_bs4.pb'
    paths = f'--inputs={tmp_path}/in', f'--outputs={tmp_path}/out'
    for source in (graph, f'--ckpt_dir={wide_dir}'):
        said = good(run('export.offline', 'prepare', source, f'--data_dir={digits_dir}',
                        f'--output_dir={tmp_path}/{"in" if source == graph else "again"}',
                        '--batch_size=4', '--num_images=6')).stdout
        assert '6 images in 2 files of float32 [4, 32, 48, 3]' in said
    manifest = json.loads((tmp_path / 'in' / 'manifest.json').read_text())
    assert manifest['image_size'] == '32x48'
    good(run('export.offline', 'emulate', graph, *paths))
    good(run('export.offline', 'score', *paths, f'--reference={wide_dir}',
             f'--json={tmp_path}/score.json'))
    assert json.loads((tmp_path / 'score.json').read_text())['max_difference'] < 1e-4
    manifest['shape'] = [4, 48, 32, 3]
    (tmp_path / 'in' / 'manifest.json').write_text(json.dumps(manifest))
    refused = run('export.offline', 'score', *paths)
    assert refused.returncode == 1 and 'contradict each other' in refused.stderr


def test_routing_is_that_of_the_runs_normalization(wide_dir, digits_dir, monkeypatch):
    found = inspect(checkpoint=wide_dir, data_dir=digits_dir, batch_size=8).content
    assert found['image_size'] == '32x48'
    assert found['parts'][0]['input_shape'] == (32, 48, 3)
    own = model_builder_factory.get_model_builder
    monkeypatch.setattr(model_builder_factory, 'get_model_builder', lambda name, _=None: own(name))
    other = inspect(checkpoint=wide_dir, data_dir=digits_dir, batch_size=8).content
    assert other['routing']['experts'] != found['routing']['experts']


def test_the_run_goes_on_in_another_size_and_is_evaluated_in_one(run, wide_dir, digits_dir):
    """The last test, because it adds to the run."""
    best = best_evaluation(wide_dir)
    completed = good(run('main.py', '--mode=eval', '--eval_once', f'--model_dir={wide_dir}',
                         f'--data_dir={digits_dir}', '--input_image_size=48x32'))
    assert "--input_image_size=48x32 overrides the run's value, 32x48." in completed.stderr
    assert 'with images of 48x32 pixels' in completed.stderr
    assert best_evaluation(wide_dir) == best
    rows = evaluation_table.rows(event_log.read(wide_dir), wide_dir)
    assert [(row.step, row.image_size) for row in rows] == [(4, None), (4, '48x32')]
    completed = good(run(
        'main.py', f'--data_dir={digits_dir}', f'--model_dir={wide_dir}', *TINY, '--mode=train',
        '--normalization=advprop', '--train_steps=5', '--input_image_size=40'))
    assert 'Resuming from step 4' in completed.stderr
    with open(os.path.join(wide_dir, 'config.json')) as file:
        segments = json.load(file)['segments']
    assert [segment['optimization']['input_image_size'] for segment in segments] == ['32x48', 40]
