"""From a checkpoint to a SavedModel to predictions, as a user runs them."""
import os
import shutil

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from dataset import schema
from training import results


@pytest.fixture(scope='module')
def saved_model_dir(run, trained_dir, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp('export'))
    completed = run('export_model.py', f'--ckpt_dir={trained_dir}', f'--output_dir={folder}')
    assert completed.returncode == 0, completed.stderr
    return os.path.join(folder, '6')


def load(session, path, signature):
    meta_graph = tf.saved_model.load(session, ['serve'], path)
    definition = meta_graph.signature_def[signature]
    return ({name: info.name for name, info in definition.inputs.items()},
            {name: info.name for name, info in definition.outputs.items()})


@pytest.mark.slow
def test_the_saved_model_knows_what_the_averaged_weights_know(
        saved_model_dir, digits_dir, trained_dir):
    records = [record for shard in schema.find_shards(digits_dir, 'validation')
               for record in tf.io.tf_record_iterator(shard)]
    features = [tf.train.Example.FromString(record).features.feature for record in records]
    images = [feature[schema.IMAGE_ENCODED].bytes_list.value[0] for feature in features]
    labels = [feature[schema.CLASS_LABEL].int64_list.value[0] - 1 for feature in features]
    with tf.Graph().as_default(), tf.Session() as session:
        inputs, outputs = load(session, saved_model_dir, 'serving_default')
        classes, probabilities = session.run(
            [outputs['classes'], outputs['probabilities']], {inputs['image_bytes']: images})
    expected = [event for event in results.read(trained_dir)
                if event['event'] == 'eval' and event['weights'] == 'ema'][-1]
    assert np.mean(classes == labels) == pytest.approx(expected['top_1'], abs=0.0015)
    np.testing.assert_allclose(probabilities.sum(1), 1.0, rtol=1e-5)


@pytest.mark.slow
def test_both_signatures_agree_at_any_batch_size(saved_model_dir, photos):
    images = [encoded for _, encoded, _ in photos[:3]]
    with tf.Graph().as_default(), tf.Session() as session:
        inputs, outputs = load(session, saved_model_dir, 'serving_default')
        together = session.run(outputs['logits'], {inputs['image_bytes']: images})
        alone = [session.run(outputs['logits'], {inputs['image_bytes']: [image]})[0]
                 for image in images]
        image_inputs, image_outputs = load(session, saved_model_dir, 'image')
        pixels = np.random.RandomState(0).uniform(0, 255, [2, 32, 32, 3])
        logits = session.run(image_outputs['logits'], {image_inputs['image']: pixels})
        assert logits.shape == (2, 10)
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_predict_prints_class_names(run, saved_model_dir, digits_dir):
    image = os.path.join(digits_dir, 'examples', 'seven_0.jpg')
    completed = run('predict.py', f'--saved_model={os.path.dirname(saved_model_dir)}', '--top_k=2',
                    image, image)
    assert completed.returncode == 0, completed.stderr
    lines = completed.stdout.splitlines()
    assert len(lines) == 2 and lines[0] == lines[1]
    path, first, probability, *_ = lines[0].split()
    assert path == image and first in schema.DatasetInfo.load(digits_dir).class_names
    assert 0 < float(probability) < 1


@pytest.mark.slow
@pytest.mark.parametrize('command, texts', [
    (['export_model.py', '--output_dir=OUT', '--ckpt_dir=/no/such'], ['/no/such', 'no checkpoint']),
    (['export_model.py', '--output_dir=OUT', '--ckpt_dir=TRAINED', '--num_label_classes=7'],
     ['--num_label_classes=7', '10']),
    (['predict.py', '--saved_model=/no/such', 'x.jpg'], ['/no/such']),
    (['predict.py', '--saved_model=SAVED', '/no/such.jpg'], ['/no/such.jpg']),
    (['predict.py', '--saved_model=SAVED'], ['No image'])])
def test_mistakes_are_one_sentence(
        run, trained_dir, saved_model_dir, tmp_path, command, texts):
    names = {'OUT': str(tmp_path / 'out'), 'TRAINED': trained_dir, 'SAVED': saved_model_dir}
    for name, value in names.items():
        command = [word.replace(name, value) for word in command]
    completed = run(*command)
    assert completed.returncode == 1
    assert 'Traceback' not in completed.stderr
    assert all(text in completed.stderr for text in texts)
    assert not (tmp_path / 'out').exists()


@pytest.mark.slow
def test_a_second_export_replaces_the_first(run, trained_dir, saved_model_dir, tmp_path):
    folder = shutil.copytree(os.path.dirname(saved_model_dir), tmp_path / 'export')
    (folder / '6' / 'stale').write_text('of an earlier export')
    completed = run('export_model.py', f'--ckpt_dir={trained_dir}', f'--output_dir={folder}',
                    '--noenable_ema')
    assert completed.returncode == 0, completed.stderr
    assert sorted(os.listdir(folder)) == ['6']
    assert not (folder / '6' / 'stale').exists()
