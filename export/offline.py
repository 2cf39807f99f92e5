"""Prepares inputs for offline inference on Ascend, emulates it, and scores its outputs.

    python -m export.offline prepare --ckpt_dir=MODEL_DIR --data_dir=TFRECORDS --output_dir=INPUTS
    python -m export.offline emulate --frozen_graph=FILE.pb --inputs=INPUTS --outputs=OUTPUTS
    python -m export.offline score --inputs=INPUTS --outputs=OUTPUTS

docs/offline_inference.md describes all steps, including the commands on the device.
"""
import itertools
import json
import os

from absl import flags
import numpy as np
import tensorflow.compat.v1 as tf

from checkpoints import store
from common import app
from common import text_tables
from common.errors import UserError
from common.files import whole_file
from common.image_sizes import ImageSize
from common.paths import check_input_folder
from common.paths import check_output_file
from common.paths import check_output_folder
from config import setting
from export import emulation
from export import images as export_images
from export import loading
from export import offline_inputs
from export import offline_outputs
from export import trained_model
from tfrecords import image_formats
from tfrecords import layout
from tfrecords import schema

# Command -> its flags; those before None are required.
COMMANDS = {
    'prepare': ('output_dir', None, 'ckpt_dir', 'frozen_graph', 'data_dir', 'images', 'dtype',
                'batch_size', 'num_images', *layout.EVAL_FLAGS),
    'emulate': ('frozen_graph', 'inputs', 'outputs', None, 'layout'),
    'score': ('inputs', 'outputs', None, 'json', 'reference')}
_PATHS = ('ckpt_dir', 'frozen_graph', 'data_dir', 'images', 'output_dir', 'inputs', 'outputs',
          'json', 'reference')


def define_flags():
    # Flags follow the command.
    flags.FLAGS.set_gnu_getopt(True)
    flags.DEFINE_string('ckpt_dir', '', 'prepare: directory with the checkpoint of the model; '
                        'the newest is used.')
    flags.DEFINE_string('frozen_graph', '', 'prepare, emulate: .pb file of export_model.py.')
    flags.DEFINE_string('data_dir', '', 'prepare: directory of TFRecord shards, whose validation '
                        'images are used.')
    app.define_text_flags(layout.EVAL_FLAGS)
    flags.DEFINE_string('images', '', 'prepare: directory of image files, instead of --data_dir; '
                        'the names of its subdirectories are the labels.')
    flags.DEFINE_string('output_dir', '', 'prepare: directory to write the inputs to.')
    flags.DEFINE_enum('dtype', 'float32', offline_inputs.DTYPES, 'prepare: type of the pixels, '
                      'from 0 to 255; uint8 is for a model converted with --aipp.')
    flags.DEFINE_integer('batch_size', 1, 'prepare: images per file.', lower_bound=1,
                         upper_bound=setting.LARGEST_BATCH_SIZE)
    flags.DEFINE_integer('num_images', None, 'prepare: use only the first N images.',
                         lower_bound=1, upper_bound=app.LARGEST_INTEGER)
    flags.DEFINE_string('inputs', '', 'emulate, score: directory that prepare wrote.')
    flags.DEFINE_string('outputs', '', 'emulate, score: directory that contains the time-stamped '
                        'directories of outputs.')
    flags.DEFINE_enum('layout', 'ais_bench', list(offline_outputs.ENDINGS),
                      'emulate: the program whose output files are emulated.')
    flags.DEFINE_string('json', '', 'score: also write the result to this JSON file.')
    flags.DEFINE_string('reference', '', 'score: an export or a checkpoint to compare with.')


def main(argv):
    options = flags.FLAGS
    names = ', '.join(COMMANDS)
    if len(argv) != 2 or argv[1] not in COMMANDS:
        raise UserError(f'{" ".join(argv[1:]) or "no command"}: not one of the commands {names}; '
                        'give one of them before the flags.')
    command, own = argv[1], COMMANDS[argv[1]]
    for name in set(itertools.chain(*COMMANDS.values())) - {None, *own}:
        if options[name].value != options[name].default:
            raise UserError(f'--{name}: not a flag of {command}; remove it.')
    for name in own[:own.index(None)]:
        if not options[name].value:
            raise UserError(f'--{name}: required by {command}, but not given; add it.')
    for name in _PATHS:
        if '://' in options[name].value:
            raise UserError(f'--{name}={options[name].value}: not a local path; copy it to a local '
                            'disk.')
    return {'prepare': prepare, 'emulate': emulate, 'score': score}[command](options)


def prepare(options):
    """Writes the images of a dataset as inputs of the model."""
    for names in (('ckpt_dir', 'frozen_graph'), ('data_dir', 'images')):
        if bool(options[names[0]].value) == bool(options[names[1]].value):
            raise UserError(f'--{names[0]}, --{names[1]}: exactly one is needed; give one of them.')
    layout.check_used(options.flag_values_dict(), options.data_dir)
    check_output_folder(options.output_dir, '--output_dir')
    settings, max_pixels = _model_settings(options)
    settings.update(
        shape=[options.batch_size, *ImageSize.of(settings['image_size']), 3],
        dtype=options.dtype, batch_size=options.batch_size, num_images_wanted=options.num_images,
        source=os.path.abspath(options.data_dir or options.images))
    images, labels, total = _images(options, settings, max_pixels)
    if options.num_images:
        images = itertools.islice(images, options.num_images)
        total = min(options.num_images, total or options.num_images)
    manifest, clipping = offline_inputs.prepare(
        images, labels, settings, max_pixels, options.output_dir, total)
    print(f"{options.output_dir}: {manifest['num_images']} images in {len(manifest['files'])} "
          f"files of {manifest['dtype']} {manifest['shape']}, "
          f"{'with' if labels else 'without'} labels")
    if clipping:
        print(f'uint8: clipped {clipping.share:.2%} of the newly written values, which exceeded 0 '
              f'to 255 by up to {clipping.largest:.0f}; all others are within 0.5 of float32')


def _model_settings(options):
    """Returns the model's fields of a manifest, and the largest number of pixels of an image."""
    if options.frozen_graph:
        graph = emulation.FrozenGraph(options.frozen_graph)
        description = loading.read_description(options.frozen_graph)
        num_classes, checksum, image_size = graph.num_classes, graph.checksum, graph.image_size
        max_pixels = image_formats.MAX_IMAGE_PIXELS
    else:
        trained = trained_model.from_checkpoint(store.find(options.ckpt_dir, 'ckpt_dir'))
        description, checksum = trained.description, None
        num_classes, image_size = trained.overrides['num_classes'], trained.image_size
        max_pixels = trained.max_image_pixels
    return {'model_name': description.get('model_name') or '', 'model_checksum': checksum,
            'num_classes': num_classes, 'class_names': description.get('class_names') or [],
            'resize_method': description.get('resize_method') or 'bicubic',
            'image_size': image_size.written}, max_pixels


def _images(options, settings, max_pixels):
    """Returns (iterable of images, function of their classes or None, their number or None)."""
    num_classes, names = settings['num_classes'], settings['class_names']
    if options.data_dir:
        classes = export_images.LabelClasses(class_names=names)

        def class_of(image):
            if image.label is None:
                raise UserError(f'{image.name}: has no label; check --label_key.')
            return classes.of(image, num_classes)

        info = schema.DatasetInfo.load(options.data_dir)
        images = export_images.of_split(options.data_dir, schema.VALIDATION,
                                        layout.Layout.of(options.flag_values_dict()))
        return (images, class_of,
                info and info.num_images[schema.VALIDATION])
    check_input_folder(options.images, '--images')
    images = list(export_images.find([options.images], [], max_pixels))
    index_of = {name: index for index, name in enumerate(names or map(str, range(num_classes)))}

    def subfolder(image):
        return os.path.relpath(image.name, options.images).rpartition(os.sep)[0]

    if not any(map(subfolder, images)):
        return images, None, len(images)
    for image in images:
        if subfolder(image) not in index_of:
            raise UserError(f'{image.name}: the directory is not named like a class of the model; '
                            'rename it, or put all images directly into --images.')
    return images, lambda image: index_of[subfolder(image)], len(images)


def emulate(options):
    """Runs a frozen graph on the inputs and writes its outputs."""
    check_output_folder(options.outputs, '--outputs')
    check_input_folder(options.inputs, '--inputs')
    folder = emulation.run(options.frozen_graph, options.inputs, options.outputs, options.layout)
    print(f'{folder}: outputs in the layout of {options.layout}; an emulation with TensorFlow, not '
          'computed by a device')


def score(options):
    """Prints the accuracy of outputs and their difference from a reference."""
    check_input_folder(options.inputs, '--inputs')
    if options.json:
        check_output_file(options.json, '--json',
                          [options.inputs, options.outputs, options.reference], '.json')
    manifest = offline_inputs.read_manifest(options.inputs)
    if not (manifest['has_labels'] or options.reference):
        raise UserError(f'--inputs={options.inputs}: no labels; give a --reference to compare '
                        'with.')
    folder = offline_outputs.newest_folder(options.outputs)
    emulation.check(folder, manifest)
    probabilities = offline_outputs.read(folder, manifest)
    labels = (offline_inputs.read_labels(options.inputs, manifest)
              if manifest['has_labels'] else None)
    expected = _expected(options, manifest) if options.reference else None
    scores = offline_outputs.score(probabilities, labels, manifest['class_names'], expected)
    _print(scores)
    if options.json:
        with whole_file(options.json) as file:
            json.dump({key: getattr(scores, key) for key in (
                'top_1', 'top_5', 'num_images', 'max_difference')}, file)


def _expected(options, manifest):
    """Returns the reference's predictions of the inputs, dict of 'logits' and 'probabilities'."""
    path = options.reference
    is_checkpoint = store.latest(path) if tf.gfile.IsDirectory(path) else not tf.gfile.Exists(path)
    loaded = loading.from_trained(trained_model.from_checkpoint(
        store.find(path, 'reference'))) if is_checkpoint else loading.load(path)
    portions = []
    with loaded as model:
        prepared = ImageSize(*manifest['shape'][1:3])
        if model.image_size != prepared:
            raise UserError(f'--reference={path}: takes images of {model.image_size} pixels, but '
                            f'the inputs have {prepared}; name the model of the inputs.')
        for _, images in offline_inputs.read(options.inputs, manifest):
            portions.append(model.predict(images.astype(np.float32)))
    expected = {name: np.concatenate([portion[name] for portion in portions])[
        :manifest['num_images']] for name in ('logits', 'probabilities')}
    if expected['probabilities'].shape[1] != manifest['num_classes']:
        raise UserError(f"--reference={path}: has {expected['probabilities'].shape[1]} classes, "
                        f"but the inputs {manifest['num_classes']}; name the model of the inputs.")
    return expected


def _print(scores):
    if scores.class_scores:
        columns = tuple(text_tables.Column(
            name.replace('class_index', 'class'),
            lambda row, name=name: f'{row[name]:.4f}' if isinstance(row[name], float)
            else str(row[name]), name == 'name') for name in scores.class_scores[0]._fields)
        table = text_tables.Table([row._asdict() for row in scores.class_scores], columns)
        print(text_tables.to_text(text_tables.Findings({}, [table], [])))
        print(f'top-1 {scores.top_1:.4f}  top-5 {scores.top_5:.4f}  on {scores.num_images} images')
    if scores.max_difference is not None:
        print(f'max difference from the reference {scores.max_difference:.1e} of a probability, '
              f'another class for {scores.num_changed} of {scores.num_images} images')


if __name__ == '__main__':
    define_flags()
    app.run(main, takes_arguments=True)
