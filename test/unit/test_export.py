"""What the rooms of export/ do that a run of the programs would not show."""
import dataclasses
import io
import itertools
import os

import numpy as np
from PIL import Image
import pytest
import tensorflow.compat.v1 as tf

from checkpoints import restore
from common.errors import UserError
from condconv_layers import CondConvImplementation
from dataset import image_files
from export import images as export_images
from export import inference_graph
from export import loading
from export import saved_model
from export import tflite
from export import trained_model
from export import verify
import export_model
from tfrecords import reader
from tfrecords import schema

SIZE = 32


def make_source(folder, model_name, **overrides):
    """A `TrainedModel` of random weights and of batch norms that all do something."""
    overrides = {'num_classes': 7, 'width_coefficient': 0.25, 'depth_coefficient': 0.25,
                 'batch_norm_epsilon': 0.02, **overrides}
    trained = trained_model.TrainedModel(
        str(folder / 'model.ckpt-1'), restore.RAW, model_name, SIZE, overrides)
    random = np.random.RandomState(0)
    ranges = {'gamma': (0.5, 1.5), 'beta': (-1, 1), 'moving_mean': (-1, 1),
              'moving_variance': (0.05, 2)}
    with tf.Graph().as_default(), tf.Session() as session:
        tf.set_random_seed(0)
        trained.outputs(tf.zeros([1, SIZE, SIZE, 3]))
        values = {}
        for variable in tf.global_variables():
            limits = ranges.get(variable.op.name.split('/')[-1])
            if limits:
                values[variable.initializer.inputs[1]] = random.uniform(
                    *limits, variable.shape.as_list())
        session.run(tf.global_variables_initializer(), values)
        tf.train.Saver().save(session, trained.checkpoint)
    return trained


@pytest.mark.slow
@pytest.mark.parametrize('model_name, overrides', [
    ('efficientnet-b0', {}), ('efficientnet-lite0', {}), ('efficientnet-edgetpu-S', {}),
    ('efficientnet-condconv-b0-4e', {}),
    ('efficientnet-condconv-b0-4e', {'condconv_implementation': CondConvImplementation.EXPERTS})])
def test_folded_batch_norm_changes_nothing(tmp_path, check_operations, model_name, overrides):
    trained = make_source(tmp_path, model_name)
    images = np.random.RandomState(1).uniform(0, 255, [3, SIZE, SIZE, 3])
    with loading.from_trained(trained) as model:
        expected = model.predict(images)['logits']
    graph_def, names = inference_graph.constant_graph(trained, **overrides)
    assert not [node.name for node in graph_def.node if 'BatchNorm' in node.op]
    check_operations({node.op for node in graph_def.node})
    with tf.Graph().as_default(), tf.Session() as session:
        tf.import_graph_def(graph_def, name='')
        logits = session.run('logits:0', {'image:0': images})
    assert names == ['classes', 'probabilities', 'logits']
    assert np.ptp(expected, axis=0).max() > 0.01
    # In float32; a batch norm that is folded wrongly moves the logits by about as much as they are.
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-3 * np.abs(expected).max())


def test_tflite_is_not_asked_for_what_it_never_ends(tmp_path):
    trained = make_source(tmp_path, 'efficientnet-lite0', width_coefficient=1.0,
                         blocks_args=['r1_k3_s22_e130_i16_o16'])
    image = np.zeros([1, SIZE, SIZE, 3], np.float32)
    with pytest.raises(UserError, match='2080 channels.*2048'):
        tflite.write(trained, str(tmp_path / 'x.tflite'), None, lambda: iter([image]))


@pytest.mark.parametrize('name', ['x.pb', 'x.tflite', 'x.onnx', 'x'])
def test_a_damaged_file_is_told(tmp_path, name):
    if name.endswith('onnx'):
        pytest.importorskip('onnxruntime')
    path = tmp_path / name
    if '.' in name:
        path.write_bytes(b'damaged' * 9)
    else:
        path.mkdir()
        (path / 'saved_model.pb').write_bytes(b'damaged' * 9)
    with pytest.raises(UserError, match=str(path)):
        with loading.load(str(path)):
            pass


def test_a_fixed_batch_is_filled_up_and_cut():
    seen = []

    def run(images):
        seen.append(len(images))
        return {'classes': images[:, 0, 0, 0]}

    model = loading.LoadedModel(run, 1, 3, {})
    images = np.arange(7, dtype=np.float32).reshape([7, 1, 1, 1])
    assert model.predict(images)['classes'].tolist() == list(range(7))
    assert seen == [3, 3, 3]


@pytest.mark.parametrize('num_classes, label_base, expected', [
    (10, None, 1), (11, None, 0), (10, 1, 1), (1000, None, 1)])
def test_first_label(digits_dir, num_classes, label_base, expected):
    assert export_images.classes_of_labels(digits_dir, num_classes, label_base) == {
        expected + index: index for index in range(num_classes)}


def test_first_label_of_other_folders(digits_dir, tmp_path):
    assert export_images.classes_of_labels(str(tmp_path), 1001)[0] == 0
    assert export_images.classes_of_labels(str(tmp_path), 1000, label_base=0)[0] == 0
    with pytest.raises(UserError, match='--label_base=0'):
        export_images.classes_of_labels(digits_dir, 10, label_base=0)


def test_generated_images_are_the_same_each_time_and_differ():
    images = export_images.generated(3, 16)
    np.testing.assert_array_equal(images, export_images.generated(3, 16))
    assert images.shape == (3, 16, 16, 3) and images.min() >= 0 and images.max() <= 255
    assert np.abs(images[0] - images[1]).mean() > 10


def saved(image, file_format, **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def test_a_folder_gives_what_pillow_reads_and_names_the_rest(tmp_path):
    """With the same bytes that dataset.create puts into records."""
    wide = Image.new('RGB', (40, 30), 'red')
    exif = Image.Exif()
    exif[0x112] = 6
    contents = {
        'a.webp': saved(wide, 'WEBP'), 'b.BMP': saved(wide, 'BMP'), 'c.tif': saved(wide, 'TIFF'),
        'd.gif': saved(wide, 'GIF', save_all=True, append_images=[Image.new('RGB', (40, 30))]),
        'e.jpg': saved(wide, 'JPEG'), 'f.png': saved(wide, 'PNG'),
        'g.jpg': saved(wide, 'JPEG', exif=exif), 'h.webp': saved(wide, 'WEBP', exif=exif),
        'i.HEIC': b'\0\0\0\x18ftypheic' + bytes(40), 'j.txt': b'', '.k.jpg': b'', 'l.mp4': b''}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    skipped = []
    images = {os.path.basename(image.name): image
              for image in export_images.find([str(tmp_path)], skipped)}
    assert skipped == [f'{tmp_path}/{name}' for name in ('.k.jpg', 'j.txt', 'l.mp4')]
    with pytest.raises(export_images.UnreadableError, match='i.HEIC: .*pip install pillow-heif'):
        images.pop('i.HEIC').read()
    assert ''.join(name[0] for name in images) == 'abcdefgh'
    assert images['e.jpg'].read() == contents['e.jpg']
    assert images['f.png'].read() == contents['f.png']
    for name, image in images.items():
        encoded = image.read()
        assert encoded == image_files.prepare(contents[name], keep_png=True).encoded
        picture = Image.open(io.BytesIO(encoded))
        assert picture.size == ((30, 40) if name[0] in 'gh' else (40, 30))
        np.testing.assert_allclose(np.asarray(picture).mean((0, 1)), [255, 0, 0], atol=3)


@pytest.mark.parametrize('file_format', ['JPEG', 'PNG'])
def test_an_image_above_the_limit_of_pixels_is_named(tmp_path, file_format):
    encoded = saved(Image.new('RGB', (40, 30)), file_format)
    record = schema.serialize_example(
        encoded=encoded, image_format=file_format, height=30, width=40, channels=3, filename='',
        label=1, text='')
    with tf.io.TFRecordWriter(str(tmp_path / 'x.tfrecord')) as writer:
        writer.write(record)
    (tmp_path / 'y').write_bytes(encoded)
    paths = [str(tmp_path / name) for name in ('x.tfrecord', 'y')]
    for max_pixels, num_good in ((1199, 0), (1200, 2)):
        with export_images.Decoder(8, 'bicubic', max_pixels) as decoder:
            good, _, reasons = decoder.decode_all(export_images.find(paths, [], max_pixels))
            assert len(good) == num_good and len(reasons) == 2 - num_good
            for path, reason in zip((f'{paths[0]}:0: has', f'{paths[1]}: it has'), reasons):
                assert reason.startswith(path) and '40 x 30 pixels, above the limit of' in reason
            if not num_good:
                # What reads a file differently from `image_size` meets the limit all the same.
                with pytest.raises(export_images.UnreadableError, match='too large'):
                    decoder.decode([encoded])


def test_errors_of_reading_end_a_prediction(tmp_path):
    """Memory of the process is a file that has a size of 0 and cannot be read at its beginning."""
    os.symlink('/proc/self/mem', str(tmp_path / 'x.jpg'))
    (tmp_path / 'y.jpg').write_bytes(b'')
    broken, missing, empty = export_images.find(
        [str(tmp_path / name) for name in ('x.jpg', 'z.jpg', 'y.jpg')], [])
    with pytest.raises(UserError, match='x.jpg: cannot be read .Input/output error.; check'):
        broken.read()
    for image, words in ((missing, 'does not exist'), (empty, 'the file is empty')):
        with pytest.raises(export_images.UnreadableError, match=words):
            image.read()
    tmp_path.chmod(0)
    user = os.geteuid()
    if not user:
        os.seteuid(65534)
    try:
        with pytest.raises(UserError, match='y.jpg: cannot be read .Permission denied.; correct'):
            empty.read()
    finally:
        os.seteuid(user)
        tmp_path.chmod(0o700)
    # As a folder the system refuses to read it.
    path = str(tmp_path / schema.shard_name(schema.TRAIN, 0, 1))
    os.mkdir(path)
    with pytest.raises(UserError, match='of-00001: cannot be read .Is a directory.; restore'):
        list(reader.iterate_records(path))


def test_records_that_hold_no_image_say_so(tmp_path):
    path = str(tmp_path / 'x.tfrecord')
    with tf.io.TFRecordWriter(path) as writer:
        writer.write(b'no example')
        writer.write(tf.train.Example().SerializeToString())
    images = list(export_images.find([path], []))
    assert [image.name for image in images] == [f'{path}:0', f'{path}:1']
    for image in images:
        with pytest.raises(export_images.UnreadableError, match=schema.IMAGE_ENCODED):
            image.read()


def test_no_folder_of_something_else_is_replaced(tmp_path):
    (tmp_path / 'thesis').mkdir()
    (tmp_path / 'thesis' / 'chapter.txt').write_text('years of work')

    def write(path):
        raise AssertionError(f'{path} is written before the folder is looked at')

    with pytest.raises(UserError, match='thesis: not empty and not a SavedModel'):
        verify.publish(str(tmp_path / 'thesis'), write, {}, None)
    assert (tmp_path / 'thesis' / 'chapter.txt').exists()


@pytest.mark.parametrize('good', [2, 0])
def test_bad_records_are_left_out_of_what_integers_are_measured_with(tmp_path, digits_dir, good):
    path = schema.find_shards(digits_dir, schema.TRAIN)[0]
    records = [record for record, _ in itertools.islice(reader.iterate_records(path), good)]
    bad = tf.train.Example.FromString(records[0]) if good else tf.train.Example()
    bad.features.feature[schema.IMAGE_ENCODED].bytes_list.value[:] = [b'\xff\xd8\xff torn']
    with tf.io.TFRecordWriter(str(tmp_path / schema.shard_name(schema.TRAIN, 0, 1))) as writer:
        for record in [bad.SerializeToString(), *records]:
            writer.write(record)
    trained = trained_model.TrainedModel('x', restore.RAW, 'efficientnet-lite0', SIZE, {})
    images = export_model._calibration(trained, str(tmp_path), 10)
    if good:
        assert [image.shape for image in images] == [(1, SIZE, SIZE, 3)] * good
        small = dataclasses.replace(trained, max_image_pixels=28 * 28 - 1)
        with pytest.raises(UserError, match='contains no readable train image'):
            list(export_model._calibration(small, str(tmp_path), 10))
    else:
        with pytest.raises(UserError, match=f'{tmp_path}: contains no readable train image'):
            list(images)


def test_the_configuration_of_an_archived_checkpoint_is_that_of_its_run(tmp_path):
    os.makedirs(str(tmp_path / 'archive'))
    (tmp_path / 'config.json').write_text('damaged')
    with pytest.raises(UserError, match='config.json'):
        trained_model.from_checkpoint(str(tmp_path / 'archive' / 'model.ckpt-1'))


def test_a_folder_with_a_name_that_is_not_utf_8_is_told(tmp_path):
    (tmp_path / '\udcff.jpg').write_bytes(b'')
    image, = export_images.find([str(tmp_path)], [])
    with pytest.raises(export_images.UnreadableError, match=r'the file name \\xff.jpg is'):
        image.read()


def test_what_stands_where_a_savedmodel_goes_is_told_before_training(tmp_path):
    (tmp_path / '6').write_text('x')
    (tmp_path / '7').mkdir()
    (tmp_path / '7' / 'notes').write_text('x')
    saved_model.check_publishable(str(tmp_path), 5)
    for step, words in ((6, '/6 is not a directory'), (7, '/7: not empty and not a SavedModel')):
        with pytest.raises(UserError, match=words):
            saved_model.check_publishable(str(tmp_path), step)
