"""From a checkpoint to a SavedModel to predictions, as a user runs them."""
import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys

from conftest import ROOT
import numpy as np
from PIL import Image
import pytest
import tensorflow.compat.v1 as tf

from run_log import event_log
from tfrecords import schema


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
    expected = [event for event in event_log.read(trained_dir)
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
        with pytest.raises(tf.errors.InvalidArgumentError, match='image 2 of the batch, counted '
                           'from 0: neither a JPEG nor a PNG file'):
            session.run(outputs['logits'], {inputs['image_bytes']: images[:2] + [b'', images[2]]})
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


CLIENT = """
import glob, json, os, sys
import tensorflow.compat.v1 as tf
assert not any('export' in path for path in sys.path)
versions = [name for name in os.listdir(sys.argv[1]) if name.isdigit()]
newest = os.path.join(sys.argv[1], max(versions, key=int))
encoded = [open(path, 'rb').read() for path in sys.argv[2:]]
with tf.Session() as session:
    signatures = tf.saved_model.load(session, ['serve'], newest).signature_def
    signature = signatures['serving_default']
    assert set(signatures) >= {'serving_default', 'image', 'image_bytes'}
    assert signature.inputs['image_bytes'].dtype == tf.string.as_datatype_enum
    names = {name: info.name for name, info in signature.outputs.items()}
    outputs = session.run(names, {signature.inputs['image_bytes'].name: encoded})
print(json.dumps({name: values.tolist() for name, values in outputs.items()}))
"""


def example(digits_dir, name):
    return os.path.join(digits_dir, 'examples', f'{name}_0.jpg')


@pytest.mark.slow
def test_a_client_without_this_project_is_served(run, saved_model_dir, digits_dir, tmp_path):
    """As TensorFlow Serving finds it: the highest number in the folder, the signature by name."""
    served = tmp_path / 'served'
    shutil.copytree(saved_model_dir, served / '6')
    os.makedirs(served / '5')
    paths = [example(digits_dir, name) for name in ('one', 'two', 'three')]
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    completed = subprocess.run(
        [sys.executable, '-c', CLIENT, str(served), *paths], cwd=tmp_path, env=environment,
        capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    outputs = json.loads(completed.stdout.splitlines()[-1])
    assert set(outputs) == {'classes', 'probabilities', 'logits'}
    table = predict_table(run, tmp_path, f'--saved_model={saved_model_dir}', *paths)
    assert [row['class_1'] for row in table] == [str(index) for index in outputs['classes']]
    assert [float(row['probability_1']) for row in table] == pytest.approx(
        [max(row) for row in outputs['probabilities']], abs=1e-5)


def predict_table(run, tmp_path, *arguments, returncode=0):
    path = tmp_path / 'table.csv'
    completed = run('predict.py', f'--csv={path}', *arguments)
    assert completed.returncode == returncode, completed.stderr
    with open(path) as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_predict_prints_class_names(run, saved_model_dir, digits_dir, tmp_path):
    image = example(digits_dir, 'seven')
    completed = run('predict.py', f'--saved_model={os.path.dirname(saved_model_dir)}', '--top_k=2',
                    image, image)
    assert completed.returncode == 0, completed.stderr
    lines = completed.stdout.splitlines()
    assert len(lines) == 2 and lines[0] == lines[1]
    path, first, probability, *_ = lines[0].split()
    assert path == image and first in schema.DatasetInfo.load(digits_dir).class_names
    assert 0 < float(probability) < 1
    labels = tmp_path / 'labels.txt'
    labels.write_text('\n'.join(f'name{index}' for index in range(10)))
    completed = run('predict.py', f'--saved_model={saved_model_dir}', f'--labels={labels}',
                    '--top_k=1', image)
    assert re.fullmatch(rf'{re.escape(image)}  name\d 0\.\d+\n', completed.stdout)


@pytest.mark.slow
def test_tables_are_utf8_and_their_rows_as_long_as_the_heading(
        run, saved_model_dir, digits_dir, tmp_path):
    names = [f'größe 日本 {index}' for index in range(10)]
    labels, table = tmp_path / 'labels.txt', tmp_path / 'table.csv'
    labels.write_text('\n'.join(names), encoding='utf-8')
    # A locale whose encoding has none of these letters.
    completed = run('predict.py', f'--saved_model={saved_model_dir}', f'--csv={table}',
                    f'--labels={labels}', '--top_k=12', example(digits_dir, 'seven'),
                    LC_ALL='C', PYTHONCOERCECLOCALE='0', PYTHONUTF8='0')
    assert completed.returncode == 0, completed.stderr
    with open(table, encoding='utf-8') as file:
        heading, row = csv.reader(file)
    assert sorted(row[3:32:3]) == names and len(row) == len(heading) == 2 + 3 * 12
    assert row[-6:] == [''] * 6


@pytest.mark.slow
def test_a_table_that_fails_leaves_what_there_was(run, saved_model_dir, digits_dir, tmp_path):
    (tmp_path / 'labels.txt').write_text('only\ntwo')
    (tmp_path / 'table.csv').write_text('earlier')
    completed = run('predict.py', f'--saved_model={saved_model_dir}', example(digits_dir, 'seven'),
                    f'--csv={tmp_path}/table.csv', f'--labels={tmp_path}/labels.txt')
    assert completed.returncode == 1 and 'contains 2 names' in completed.stderr
    assert sorted(os.listdir(tmp_path)) == ['labels.txt', 'table.csv']
    assert (tmp_path / 'table.csv').read_text() == 'earlier'


@pytest.mark.slow
def test_a_reader_that_has_had_enough_is_no_error(saved_model_dir, digits_dir):
    ending, beginning = os.pipe()
    os.close(ending)
    completed = subprocess.run(
        [sys.executable, 'predict.py', f'--saved_model={saved_model_dir}',
         example(digits_dir, 'seven')], cwd=ROOT, stdout=beginning, stderr=subprocess.PIPE)
    os.close(beginning)
    assert completed.returncode == -signal.SIGPIPE and not completed.stderr


@pytest.mark.slow
def test_a_full_disk_behind_standard_output_is_one_line(saved_model_dir, digits_dir):
    with open('/dev/full', 'w') as full:
        completed = subprocess.run(
            [sys.executable, 'predict.py', f'--saved_model={saved_model_dir}',
             example(digits_dir, 'seven')], cwd=ROOT, stdout=full, stderr=subprocess.PIPE)
    assert completed.returncode == 1
    assert completed.stderr == (
        b'predict.py: error: No space left on device; make room and rerun. Files saved earlier '
        b'are intact.\n')


@pytest.mark.slow
def test_letters_that_a_terminal_lacks_are_spelled_out(
        start, saved_model_dir, digits_dir, tmp_path):
    shutil.copy(example(digits_dir, 'seven'), str(tmp_path / '\u4e2d.jpg'))
    process = start('predict.py', f'--saved_model={saved_model_dir}', str(tmp_path),
                    PYTHONIOENCODING='ascii')
    output, _ = process.communicate()
    assert process.returncode == 0 and f'{tmp_path}/\\u4e2d.jpg  ' in output


@pytest.mark.slow
def test_a_folder_with_a_name_that_is_not_utf8_is_left_out(
        run, saved_model_dir, digits_dir, tmp_path):
    folder = tmp_path / 'photos'
    folder.mkdir()
    shutil.copy(example(digits_dir, 'seven'), os.fsencode(str(folder)) + b'/\xfc.jpg')
    completed = run('predict.py', f'--saved_model={saved_model_dir}', str(folder),
                    example(digits_dir, 'two'))
    assert completed.returncode == 1 and 'Traceback' not in completed.stderr
    assert rf'{folder}: cannot be read (the file name \xfc.jpg is' in completed.stderr
    assert len(completed.stdout.splitlines()) == 1


@pytest.fixture(scope='module')
def odd_images(tmp_path_factory):
    """A folder of images of all kinds, below one of them, and of files that are none."""
    folder = tmp_path_factory.mktemp('odd')
    (folder / 'below').mkdir()
    for mode in ('L', 'RGB', 'CMYK'):
        Image.new(mode, (50, 31), 128 if mode == 'L' else None).save(folder / f'{mode}.jpg')
    Image.new('RGB', (40, 40)).save(folder / 'progressive.JPEG', progressive=True)
    for mode in ('1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'I;16'):
        name = mode.replace(';', '')
        Image.new(mode, (37, 64)).save(folder / 'below' / f'{name}.png')
    for size in ((1, 1), (3, 700), (900, 2)):
        Image.new('RGB', size).save(folder / 'below' / f'{size[0]}x{size[1]}.png')
    buffer = io.BytesIO()
    Image.fromarray(np.random.RandomState(0).randint(0, 255, [90, 90, 3], np.uint8)).save(
        buffer, 'JPEG')
    (folder / 'truncated.jpg').write_bytes(buffer.getvalue()[:2000])
    (folder / 'text.png').write_text('no image')
    (folder / 'empty.jpg').write_text('')
    (folder / 'ignored.txt').write_text('no image, and not called one')
    for extension in ('webp', 'bmp', 'tiff', 'gif'):
        Image.new('RGB', (20, 30)).save(folder / f'other.{extension}')
    (folder / 'phone.heic').write_bytes(b'\0\0\0\x18ftypheic' + bytes(40))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize('batch_size', [1, 32])
def test_images_of_every_kind_and_files_that_are_none(
        run, saved_model_dir, odd_images, tmp_path, batch_size):
    table = tmp_path / 'table.csv'
    completed = run('predict.py', f'--saved_model={saved_model_dir}', f'--csv={table}',
                    f'--batch_size={batch_size}', str(odd_images), '/no/such.jpg')
    assert completed.returncode == 1
    bad = {'truncated.jpg', 'text.png', 'empty.jpg', 'phone.heic'}
    with open(table) as file:
        rows = list(csv.DictReader(file))
    assert [row['image'] for row in rows] == sorted(
        (str(path) for path in odd_images.rglob('*.*')
         if path.suffix != '.txt' and path.name not in bad),
        key=lambda path: (os.path.dirname(path), path))
    assert len(rows) == 18
    lines = [line for line in completed.stderr.splitlines() if 'error: ' in line]
    for name in (*bad, '/no/such.jpg'):
        assert len([line for line in lines if name in line]) == 1, name
    assert len(lines) == 6 and '5 inputs could not be read' in lines[-1]
    assert 'phone.heic' in completed.stderr and 'pip install pillow-heif' in completed.stderr
    assert f'1 file skipped, no image file extension: {odd_images}/ignored.txt' in completed.stderr
    assert 'Traceback' not in completed.stderr


@pytest.mark.slow
def test_records_are_predicted_and_scored(run, saved_model_dir, digits_dir, trained_dir, tmp_path):
    shards = schema.find_shards(digits_dir, 'validation')
    torn = tmp_path / 'validation-00000-of-00001'
    with open(shards[0], 'rb') as file:
        torn.write_bytes(file.read()[:30000])
    completed = run('predict.py', f'--saved_model={saved_model_dir}', '--top_k=1', *shards)
    assert completed.returncode == 0, completed.stderr
    lines = completed.stdout.splitlines()
    assert lines[0].startswith(f'{shards[0]}:0  ') and len(lines) == 1001
    expected = [event for event in event_log.read(trained_dir)
                if event['event'] == 'eval' and event['weights'] == 'ema'][-1]
    assert lines[-1] == (f"top-1 {expected['top_1']:.4f}  top-5 {expected['top_5']:.4f}  "
                         'on 1000 images')
    completed = run('predict.py', f'--saved_model={saved_model_dir}', str(torn))
    assert completed.returncode == 1
    assert 'cannot be read' in completed.stderr and completed.stdout.count(str(torn)) > 10


@pytest.mark.slow
def test_a_fixed_batch_an_endpoint_and_both_inputs(run, trained_dir, digits_dir, tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    completed = run(
        'export_model.py', f'--checkpoint={trained_dir}/archive', f'--output_dir={tmp_path}',
        '--formats=saved_model,frozen,onnx,tflite', '--batch_size=3', '--input=image',
        '--endpoint_name=pooled_features')
    assert completed.returncode == 0, completed.stderr
    assert 'for 3 images' in completed.stdout
    name = 'efficientnet-condconv-b0-4e'
    assert re.findall(r'input_shape="(\S+)"', (tmp_path / 'convert.sh').read_text()) == [
        'image:3,32,32,3']
    session = onnxruntime.InferenceSession(f'{tmp_path}/{name}.onnx')
    assert session.get_inputs()[0].shape == [3, 32, 32, 3]
    features, = session.run(['pooled_features'], {
        'image': np.zeros([3, 32, 32, 3], np.float32)})
    interpreter = tf.lite.Interpreter(f'{tmp_path}/{name}.tflite')
    assert interpreter.get_input_details()[0]['shape'].tolist() == [3, 32, 32, 3]
    step, = [path for path in os.listdir(tmp_path) if path.isdigit()]
    with tf.Graph().as_default() as graph, tf.Session() as session:
        inputs, outputs = load(session, f'{tmp_path}/{step}', 'serving_default')
        assert graph.get_tensor_by_name(inputs['image']).shape.as_list() == [3, 32, 32, 3]
        np.testing.assert_allclose(
            session.run(outputs['pooled_features'], {
                inputs['image']: np.zeros([3, 32, 32, 3])}), features, rtol=1e-3, atol=1e-5)
    # Four images make two batches, one of them filled up.
    images = [example(digits_dir, digit) for digit in ('one', 'two', 'three', 'four')]
    table = predict_table(run, tmp_path, f'--saved_model={tmp_path}/{name}.pb', *images)
    assert [row['image'] for row in table] == images


@pytest.mark.slow
def test_a_frozen_graph_of_encoded_images(run, trained_dir, photos, tmp_path):
    completed = run('export_model.py', f'--ckpt_dir={trained_dir}', f'--output_dir={tmp_path}',
                    '--formats=frozen', '--input=image_bytes')
    assert completed.returncode == 0, completed.stderr
    path, = tmp_path.glob('*.pb')
    assert not list(tmp_path.glob('*.sh'))  # ATC has no decoder of images.
    with tf.Graph().as_default(), tf.Session() as session:
        tf.import_graph_def(tf.GraphDef.FromString(path.read_bytes()), name='')
        logits = session.run('logits:0', {'image_bytes:0': [jpeg for _, jpeg, _ in photos[:2]]})
    assert logits.shape == (2, 10)


@pytest.mark.slow
def test_the_reference_implementations_flags(run, trained_dir, digits_dir, tmp_path):
    """With a checkpoint that has no config.json beside it, in another image size."""
    for path in tf.gfile.Glob(f'{tf.train.latest_checkpoint(trained_dir)}.*'):
        shutil.copy(path, tmp_path)
    checkpoint, = {re.sub(r'\.(data|index|meta).*', '', str(path))
                   for path in tmp_path.glob('model.ckpt*')}
    command = ['export_model.py', f'--checkpoint={checkpoint}', f'--data_dir={digits_dir}',
               '--model_name=efficientnet-condconv-b0-4e', '--num_label_classes=10',
               f'--output_saved_model_dir={tmp_path}/saved']
    completed = run(*command)
    # This network's width and depth are those of no model: only its config.json knows them.
    assert completed.returncode == 1 and 'not the ema weights' in completed.stderr
    shutil.copy(os.path.join(trained_dir, 'config.json'), tmp_path)
    completed = run(*command, '--image_size=32', f'--output_tflite={tmp_path}/x/model.tflite',
                    '--num_steps=7')
    assert completed.returncode == 0, completed.stderr
    assert tf.saved_model.maybe_saved_model_directory(f'{tmp_path}/saved')
    details = tf.lite.Interpreter(f'{tmp_path}/x/model.tflite').get_input_details()[0]
    assert details['dtype'] == np.uint8 and details['shape'].tolist() == [1, 32, 32, 3]
    completed = run(*command, '--noquantize', f'--output_tflite={tmp_path}/x/model.tflite')
    details = tf.lite.Interpreter(f'{tmp_path}/x/model.tflite').get_input_details()[0]
    assert details['dtype'] == np.float32


@pytest.mark.slow
def test_over_tolerance_leaves_nothing_new_and_what_there_was(run, trained_dir, tmp_path):
    command = ('export_model.py', f'--ckpt_dir={trained_dir}', f'--output_dir={tmp_path}')
    for existing in ((), ('6', 'efficientnet-condconv-b0-4e.pb')):
        for name in existing:
            (tmp_path / name).mkdir() if name == '6' else (tmp_path / name).write_text('earlier')
        completed = run(*command, '--formats=frozen', '--tolerance=1e-12')
        assert completed.returncode == 1
        assert 'over the tolerance of 1e-12' in completed.stderr
        assert 'max difference from the checkpoint' in completed.stderr
        assert sorted(os.listdir(tmp_path)) == sorted(existing)
    assert (tmp_path / 'efficientnet-condconv-b0-4e.pb').read_text() == 'earlier'


@pytest.mark.slow
@pytest.mark.parametrize('command, texts', [
    (['export_model.py', '--output_dir=OUT', '--ckpt_dir=/no/such'], ['/no/such', 'no checkpoint']),
    (['export_model.py', '--output_dir=OUT', '--ckpt_dir=TRAINED', '--num_label_classes=7'],
     ['--num_label_classes=7', '10']),
    (['export_model.py', '--output_dir=OUT', '--ckpt_dir=TRAINED',
      '--model_name=efficientnet-lite0'], ['--model_name=efficientnet-lite0', 'b0-4e']),
    (['export_model.py', '--output_dir=OUT', '--ckpt_dir=TRAINED', '--endpoint_name=tail'],
     ['--endpoint_name=tail', 'pooled_features']),
    (['export_model.py', '--output_dir=OUT', '--ckpt_dir=TRAINED', '--batch_size=0'],
     ['--batch_size=0', 'free']),
    (['export_model.py', '--output_dir=OUT', '--ckpt_dir=TRAINED', '--formats=onnx',
      '--input=image_bytes'], ['--input=image_bytes', 'onnx']),
    (['export_model.py', '--output_dir=OUT', '--ckpt_dir=TRAINED', '--quantize'],
     ['--quantize', 'tflite']),
    (['export_model.py', '--output_tflite=OUT/model.bin', '--ckpt_dir=TRAINED'],
     ['--output_tflite=', 'model.bin: must end in .tflite']),
    (['export_model.py', '--output_saved_model_dir=TRAINED', '--ckpt_dir=TRAINED'],
     ['TRAINED: not empty and not a SavedModel']),
    (['export_model.py', '--ckpt_dir=TRAINED'], ['--output_dir']),
    (['export_model.py', '--output_dir=OUT'], ['--ckpt_dir']),
    (['export_model.py', '--output_dir=OUT', '--ckpt_dir=TRAINED', '--data_dir=/no/such'],
     ['/no/such']),
    (['predict.py', '--saved_model=/no/such', 'x.jpg'], ['/no/such']),
    (['predict.py', '--saved_model=/etc/hostname', 'x.jpg'], ['.onnx']),
    (['predict.py', '--saved_model=SAVED', '--csv=/no/such/x.csv', 'x.jpg'], ['/no/such/x.csv']),
    (['predict.py', '--saved_model=SAVED', '--labels=/no/such', 'x.jpg'], ['--class_names=/no/s']),
    (['predict.py', '--saved_model=SAVED', '--data_dir=/no/such'], ['/no/such']),
    (['predict.py', 'x.jpg'], ['--saved_model', '--checkpoint']),
    (['predict.py', '--saved_model=SAVED', '/no/such.jpg'], ['/no/such.jpg']),
    (['predict.py', '--saved_model=SAVED'], ['no images given'])])
def test_mistakes_are_one_sentence(
        run, trained_dir, saved_model_dir, tmp_path, command, texts):
    names = {'OUT': str(tmp_path / 'out'), 'TRAINED': trained_dir, 'SAVED': saved_model_dir}
    for name, value in names.items():
        command = [word.replace(name, value) for word in command]
        texts = [text.replace(name, value) for text in texts]
    completed = run(*command)
    assert completed.returncode == 1
    assert 'Traceback' not in completed.stderr
    assert all(text in completed.stderr for text in texts)
    assert not (tmp_path / 'out').exists() or not os.listdir(tmp_path / 'out')


def test_an_unheard_of_format_does_not_parse(run):
    completed = run('export_model.py', '--formats=saved_model,caffe')
    assert completed.returncode == 2 and 'onnx' in completed.stderr


@pytest.mark.slow
def test_a_second_export_replaces_the_first(run, trained_dir, saved_model_dir, tmp_path):
    folder = shutil.copytree(os.path.dirname(saved_model_dir), tmp_path / 'export')
    (folder / '6' / 'stale').write_text('of an earlier export')
    completed = run('export_model.py', f'--ckpt_dir={trained_dir}', f'--output_dir={folder}',
                    '--noenable_ema')
    assert completed.returncode == 0, completed.stderr
    assert sorted(os.listdir(folder)) == ['6', 'labels.txt']
    assert not (folder / '6' / 'stale').exists()
    with tf.Graph().as_default(), tf.Session() as session:
        load(session, f'{folder}/6', 'image')
        bias = 'efficientnet-condconv-b0-4e/head/dense/bias'
        exported = session.run(f'{bias}:0')
    np.testing.assert_array_equal(exported, tf.train.load_variable(trained_dir, bias))
