"""Exports a checkpoint as SavedModel, frozen graph (for Ascend), TFLite or ONNX.

    python3.7 export_model.py --ckpt_dir=MODEL_DIR --output_dir=DIR --formats=saved_model,onnx

Each export is loaded back and compared with the checkpoint before it is renamed to its final name.
DIR then contains:

    <step>/                     SavedModel for TensorFlow Serving and predict.py
    <model>.pb                  frozen graph
    <model>_bs<N>.pb            frozen graph for batch size N, with --batch_sizes and for CondConv
    convert.sh                  script that compiles the frozen graphs for Ascend
    <model>.tflite              floating-point TFLite model
    <model>_int8.tflite         integer TFLite model, with --quantize
    <model>.onnx                ONNX model
    labels.txt                  class names, if known
"""
import functools
import itertools
import os
import re

from absl import flags
from absl import logging
import tqdm

from checkpoints import store
from common import app
from common.errors import UserError
from common.paths import check_output_file
from common.paths import check_output_folder
from config import normalization
from config import setting
from export import frozen_graph
from export import images as export_images
from export import inference_graph
from export import onnx
from export import saved_model
from export import tflite
from export import trained_model
from export import verify
import model_builder_factory
from tfrecords import class_labels
from tfrecords import layout
from tfrecords import schema
from weights import conversion

FORMATS = ('saved_model', 'frozen', 'tflite', 'onnx')
INTEGER_TFLITE = 'int8'
FREE = 'free'


def define_flags():
    flags.DEFINE_string('ckpt_dir', '', 'Directory whose newest checkpoint is exported: the '
                        '--model_dir of a training run, or its archive.')
    flags.DEFINE_string('checkpoint', '', 'Alternative to --ckpt_dir: a checkpoint such as '
                        'DIR/model.ckpt-1000, its directory, or a weight file such as '
                        '.safetensors.')
    flags.DEFINE_string('output_dir', '', 'Directory that the exports are written to.')
    flags.DEFINE_list('formats', None, 'Comma-separated list of export formats: '
                      f"{', '.join(FORMATS)}; default: saved_model.")
    flags.register_validator('formats', lambda formats: set(formats or ()) <= set(FORMATS),
                             f"the formats are {', '.join(FORMATS)}")
    flags.DEFINE_string('output_saved_model_dir', '', 'Write a SavedModel directly to this '
                        'directory, without a version subdirectory.')
    flags.DEFINE_string('output_tflite', '', 'Write a TFLite model to this file.')
    flags.DEFINE_string('batch_size', FREE, 'Batch size of the exported model: a number, or free '
                        'for a variable batch size (1 in TFLite).')
    flags.DEFINE_list('batch_sizes', [], 'Comma-separated batch sizes; one frozen graph '
                      '<model>_bs<N>.pb is written for each. Default: 1 or --batch_size for '
                      'CondConv, none for other models.')
    flags.DEFINE_string('soc_version', 'Ascend310P3', 'Target chip of convert.sh, as shown by '
                        f"npu-smi info: {', '.join(frozen_graph.SOC_VERSIONS)}, or another.")
    flags.register_validator(
        'soc_version', lambda name: re.fullmatch(r'Ascend\w{1,30}', name, re.ASCII),
        'must be a chip name such as Ascend310P3')
    flags.DEFINE_enum('atc_precision_mode', 'force_fp16', frozen_graph.PRECISION_MODES,
                      'precision_mode or precision_mode_v2 of ATC in convert.sh.')
    flags.DEFINE_bool('aipp', False, 'Let convert.sh compile for uint8 images, a quarter of the '
                      'bytes of float images, with an AIPP configuration.')
    flags.DEFINE_enum('input', None, inference_graph.INPUTS, 'Input of the model. image_bytes: '
                      'encoded images of any size; image: float images. Default: image_bytes for '
                      'the serving_default signature of a SavedModel, which also has one for '
                      'image; image for the other formats.')
    flags.DEFINE_bool('enable_ema', True, 'Export the moving averages of the weights.')
    flags.DEFINE_enum('model_name', None, model_builder_factory.MODEL_NAMES,
                      "Name of the network; default: the name in the run's config.json.")
    flags.DEFINE_integer('num_label_classes', None, 'Number of classes; default: the number of '
                         'the checkpoint.',
                         lower_bound=2, upper_bound=setting.LARGEST_NUM_CLASSES)
    setting.define_image_size('image_size', None, 'Size of the input images in pixels, a number '
                              'for squares or HEIGHTxWIDTH; default: the size of the run, else '
                              "the model's own.")
    normalization.define_flags()
    flags.DEFINE_string('class_names', '', 'File of the class names: JSON, CSV, or text with one '
                        'name per line; default: the class names of the run.')
    flags.DEFINE_string('endpoint_name', None, 'An endpoint of the network, such as '
                        'pooled_features, to add to the outputs of the model.')
    flags.DEFINE_bool('quantize', None, 'Quantize TFLite models to integers. --formats=tflite '
                      'writes the integer model in addition, --output_tflite instead. Default: '
                      'true for --output_tflite with --data_dir, else false.')
    flags.DEFINE_integer('num_steps', 200, 'Number of calibration images for --quantize.',
                         lower_bound=1)
    flags.DEFINE_string('data_dir', '', 'Directory of TFRecord shards with the images for '
                        "verification and calibration; default: the run's directory.")
    app.define_text_flags(layout.FLAGS)
    flags.DEFINE_float('tolerance', None, 'Maximum deviation from the checkpoint. Floating-point '
                       'exports: of a logit, relative to the largest one (default: '
                       f'{verify.FLOAT_TOLERANCE.limit:g}); integer exports: of a probability '
                       f'(default: {verify.INTEGER_TOLERANCE.limit:g}).',
                       lower_bound=0, upper_bound=1e6)


def main(_):
    options = flags.FLAGS
    formats = options.formats or ['saved_model'] * bool(options.output_dir)
    batch_size = _batch_size(options.batch_size)
    _check(options, formats)
    trained = trained_model.from_checkpoint(
        _checkpoint(options), options.model_name, options.num_label_classes, options.image_size,
        options.enable_ema, options.endpoint_name, normalization.given(options))
    if options.class_names:
        trained = trained.named(class_labels.read(options.class_names, 'class_names'),
                                options.class_names)
    targets = _targets(trained, options, formats, batch_size)
    for report in export(trained, targets, options.input, options.data_dir, options.num_steps,
                         options.tolerance, layout.Layout.of(options.flag_values_dict())):
        print(report, flush=True)
    if _is_for_atc(options, formats):
        graphs = [(os.path.basename(path), size) for name, path, size in targets
                  if name == 'frozen' and _can_be_compiled(trained, path, size)]
        print(frozen_graph.write_convert_script(
            options.output_dir, graphs, trained.image_size, options.soc_version,
            options.atc_precision_mode, options.aipp))
    if formats and trained.class_names:
        saved_model.write_labels(trained, os.path.join(options.output_dir, saved_model.LABELS_FILE))


def export(trained, targets, input_name=None, data_dir='', num_steps=200,
           tolerance=None, shards=layout.DETECTED):
    """Writes and verifies the exports in `targets`.

    Args:
      trained: a `TrainedModel`.
      targets: list of (format, path, batch size); the format is one of FORMATS or INTEGER_TFLITE,
        and batch size None is a variable batch size.
      input_name: value of --input: `inference_graph.IMAGE`, `inference_graph.IMAGE_BYTES` or None.
      data_dir: directory of TFRecord shards; '' for the directory of the run.
      num_steps: number of calibration images for integer models.
      tolerance: limit of the `verify.Tolerance`; None for the default of the format.
      shards: `layout.Layout` of data_dir.

    Yields:
      a `verify.ExportReport` for each export.

    Raises:
      UserError: see `verify.publish`.
    """
    for name, path, _ in targets:
        if name == 'saved_model':
            check_output_folder(path, '')
        else:
            check_output_file(path, '', makes_folders=True, is_export=True)
        verify.check_replaceable(path)
    shards = shards.in_folder(data_dir, trained.data_dir, trained.shards)
    expected = verify.expectation(trained, data_dir, shards)
    calibration = functools.partial(
        _calibration, trained, data_dir or trained.data_dir, num_steps,
        shards if data_dir else trained.shards)
    writers = {
        'saved_model': lambda path, batch_size: saved_model.write(
            trained, path, input_name or inference_graph.IMAGE_BYTES, batch_size),
        'frozen': lambda path, batch_size: frozen_graph.write(
            trained, path, input_name or inference_graph.IMAGE, batch_size),
        'tflite': lambda path, batch_size: tflite.write(trained, path, batch_size),
        INTEGER_TFLITE: lambda path, batch_size: tflite.write(
            trained, path, batch_size, calibration),
        'onnx': lambda path, batch_size: onnx.write(trained, path, batch_size)}
    for name, path, batch_size in targets:
        allowed = verify.INTEGER_TOLERANCE if name == INTEGER_TFLITE else verify.FLOAT_TOLERANCE
        if tolerance is not None:
            allowed = allowed._replace(limit=tolerance)
        logging.info('Writing %s', path)
        write = functools.partial(writers[name], batch_size=batch_size)
        yield verify.publish(path, write, trained.description, expected, allowed)


def _calibration(trained, data_dir, num_steps, shards=layout.DETECTED):
    """Yields calibration images [1, height, width, 3] from the training or validation split.

    The validation split is used only if there are no training shards.
    """
    if not data_dir:
        raise UserError('--quantize: needs calibration images; name their directory with '
                        '--data_dir.')
    split = schema.TRAIN if shards.has_shards(data_dir, schema.TRAIN) else schema.VALIDATION
    images = itertools.islice(export_images.of_split(data_dir, split, shards), num_steps)
    with export_images.Decoder(trained.image_size, trained.builder.resize_method,
                               trained.max_image_pixels) as decoder:
        num_good = 0
        for image in tqdm.tqdm(images, 'calibrating', num_steps, disable=None, leave=False):
            _, pixels, faults = decoder.decode_all([image])
            for fault in faults:
                logging.warning('Calibration image skipped: %s', fault)
            if pixels is not None:
                num_good += 1
                yield pixels
    if not num_good:
        raise UserError(f'{data_dir}: contains no readable {split} image for calibration; name '
                        'another directory with --data_dir.')


def _check(options, formats):
    """Raises UserError if flags are missing or incompatible, before any work starts."""
    if not options.output_dir and (
            formats or not (options.output_saved_model_dir or options.output_tflite)):
        raise UserError('--output_dir: not given; name the directory to write to.')
    takes_floats = [name for name in ('tflite', 'onnx') if name in formats]
    takes_floats += ['output_tflite'] * bool(options.output_tflite)
    if options.input == inference_graph.IMAGE_BYTES and takes_floats:
        raise UserError(f'--input={inference_graph.IMAGE_BYTES}: {takes_floats[0]} cannot decode '
                        'images; remove one of the two.')
    _check_ascend(options, formats)
    layout.check_used(options.flag_values_dict(), options.data_dir)
    if options.quantize and not ('tflite' in formats or options.output_tflite):
        raise UserError('--quantize: requires a TFLite export; add tflite to --formats.')
    if 'onnx' in formats:
        onnx.check_installed()
    for name in ('output_dir', 'output_saved_model_dir'):
        if options[name].value:
            check_output_folder(options[name].value, f'--{name}')
    if options.output_tflite:
        if not options.output_tflite.endswith('.tflite'):
            raise UserError(f'--output_tflite={options.output_tflite}: must end in .tflite, which '
                            'other programs expect; choose another name.')
        check_output_file(
            options.output_tflite, '--output_tflite',
            [options.class_names, options.data_dir], '.tflite',
            makes_folders=True, is_export=True)


def _check_ascend(options, formats):
    """Raises UserError if flags of frozen graphs for Ascend are invalid or incompatible."""
    for text in options.batch_sizes:
        _number(text, 'batch_sizes')
    if options.batch_sizes and options.batch_size != FREE:
        raise UserError('--batch_sizes and --batch_size: mutually exclusive; keep one of them.')
    for name in ('batch_sizes', 'soc_version', 'atc_precision_mode', 'aipp'):
        if options[name].value != options[name].default and not _is_for_atc(options, formats):
            raise UserError(f'--{name}: applies only to frozen graphs of float images; add frozen '
                            f'to --formats and remove --input={inference_graph.IMAGE_BYTES}, or '
                            f'leave out --{name}.')
    if options.soc_version not in frozen_graph.SOC_VERSIONS:
        logging.warning('--soc_version=%s: unknown chip; compare it with npu-smi info.',
                        options.soc_version)


def _is_for_atc(options, formats):
    # ATC cannot decode images.
    return 'frozen' in formats and options.input != inference_graph.IMAGE_BYTES


def _can_be_compiled(trained, path, batch_size):
    """Returns whether convert.sh compiles a frozen graph; CondConv needs a fixed batch size."""
    is_static = path.endswith(f'_bs{batch_size}.pb')
    # Shapes inside CondConv layers depend on the batch size, and ATC requires static shapes.
    return is_static or 'condconv' not in trained.model_name


def _checkpoint(options):
    if bool(options.ckpt_dir) == bool(options.checkpoint):
        raise UserError('--ckpt_dir and --checkpoint: exactly one is required; give one of them.')
    flag = 'ckpt_dir' if options.ckpt_dir else 'checkpoint'
    path = options[flag].value
    if flag == 'ckpt_dir' and not store.latest(path):
        raise UserError(f'--ckpt_dir={path}: contains no checkpoint; check the path.')
    return store.find(conversion.as_checkpoint(path, flag), flag)


def _batch_size(text):
    if text == FREE:
        return None
    return _number(text, 'batch_size', f'neither {FREE} nor')


def _number(text, flag, is_none='not'):
    largest = setting.LARGEST_BATCH_SIZE
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= largest):
        raise UserError(f'--{flag}={text}: {is_none} a number from 1 to {largest}; '
                        'correct it.')
    return int(text)


def _targets(trained, options, formats, batch_size):
    """Returns (format, path, batch size) of all exports, in the order of writing."""
    stem = os.path.join(options.output_dir, trained.model_name)
    quantizes_file = options.quantize
    if quantizes_file is None:
        quantizes_file = bool(options.data_dir)
    targets = []
    for name in formats:
        path = {'saved_model': os.path.join(options.output_dir, str(trained.step)),
                'frozen': f'{stem}.pb', 'tflite': f'{stem}.tflite', 'onnx': f'{stem}.onnx'}[name]
        targets.append((name, path, batch_size))
        if name == 'frozen' and _is_for_atc(options, formats):
            targets += [(name, f'{stem}_bs{size}.pb', size)
                        for size in _static_sizes(trained, options, batch_size)]
        if name == 'tflite' and options.quantize:
            targets.append((INTEGER_TFLITE, f'{stem}_int8.tflite', batch_size))
    if options.output_saved_model_dir:
        targets.append(('saved_model', options.output_saved_model_dir.rstrip('/'), batch_size))
    if options.output_tflite:
        targets.append((INTEGER_TFLITE if quantizes_file else 'tflite', options.output_tflite,
                        batch_size))
    # Integer models come last, because they are the most likely to exceed the tolerance.
    return sorted(targets, key=lambda target: target[0] == INTEGER_TFLITE)


def _static_sizes(trained, options, batch_size):
    """Returns the batch sizes that get a separate frozen graph, without duplicates."""
    if options.batch_sizes:
        return sorted(set(map(int, options.batch_sizes)))
    return [batch_size or 1] if 'condconv' in trained.model_name else []


if __name__ == '__main__':
    define_flags()
    app.run(main)
