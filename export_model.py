"""Exports a checkpoint: SavedModel, frozen graph (Ascend), TFLite, ONNX.

    python3.7 export_model.py --ckpt_dir=MODEL_DIR --output_dir=DIR --formats=saved_model,onnx

Every export is loaded back and compared with the checkpoint before it gets its name. In DIR:

    <step>/                     SavedModel, as TensorFlow Serving and predict.py load it
    <model>.pb                  frozen graph
    <model>_bs<N>.pb            frozen graph of N images, with --batch_sizes and for CondConv
    convert.sh                  compiles the frozen graphs for Ascend
    <model>.tflite              TFLite in floating point
    <model>_int8.tflite         TFLite in integers, with --quantize
    <model>.onnx                ONNX
    labels.txt                  the names of the classes, if they are known
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
    flags.DEFINE_string('ckpt_dir', '', "Folder whose newest checkpoint is exported: training's "
                        '--model_dir, or its archive.')
    flags.DEFINE_string('checkpoint', '', 'In place of --ckpt_dir: a checkpoint, such as '
                        'DIR/model.ckpt-1000, its folder, or a file of weights such as '
                        '.safetensors.')
    flags.DEFINE_string('output_dir', '', 'Folder that the exports are written to.')
    flags.DEFINE_list('formats', None, f"Some of {', '.join(FORMATS)}; default: saved_model.")
    flags.register_validator('formats', lambda formats: set(formats or ()) <= set(FORMATS),
                             f"the formats are {', '.join(FORMATS)}")
    flags.DEFINE_string('output_saved_model_dir', '', 'Write a SavedModel right here, without a '
                        'folder for its version.')
    flags.DEFINE_string('output_tflite', '', 'Write a TFLite model to this file.')
    flags.DEFINE_string('batch_size', FREE, 'Images in a batch: free, or a number. TFLite takes '
                        '1 for free.')
    flags.DEFINE_list('batch_sizes', [], 'Batch sizes that frozen graphs are written for, one '
                      'each: <model>_bs<N>.pb. Default: 1 or --batch_size for CondConv, none for '
                      'others.')
    flags.DEFINE_string('soc_version', 'Ascend310P3', 'The chip that convert.sh compiles for, as '
                        f"npu-smi info shows it: {', '.join(frozen_graph.SOC_VERSIONS)}, or "
                        'another.')
    flags.register_validator(
        'soc_version', lambda name: re.fullmatch(r'Ascend\w{1,30}', name, re.ASCII),
        'a chip is called Ascend and a number, such as Ascend310P3')
    flags.DEFINE_enum('atc_precision_mode', 'force_fp16', frozen_graph.PRECISION_MODES,
                      "ATC's precision_mode or precision_mode_v2 in convert.sh.")
    flags.DEFINE_bool('aipp', False, 'convert.sh compiles for uint8 images, a quarter of the '
                      'bytes, by an AIPP configuration.')
    flags.DEFINE_enum('input', None, inference_graph.INPUTS, 'What the model takes: encoded images '
                      'of any size, or float images. Default: image_bytes for the serving_default '
                      'of a SavedModel, which has a signature for both, else image.')
    flags.DEFINE_bool('enable_ema', True, 'Export the moving average of the weights.')
    flags.DEFINE_enum('model_name', None, model_builder_factory.MODEL_NAMES,
                      "The network; default: what the run's config.json says.")
    flags.DEFINE_integer('num_label_classes', None, "Classes; default: the checkpoint's.",
                         lower_bound=2, upper_bound=setting.LARGEST_NUM_CLASSES)
    setting.define_image_size('image_size', None, 'Side of the input images in pixels, or '
                              "HEIGHTxWIDTH; default: the run's, else the model's own.")
    normalization.define_flags()
    flags.DEFINE_string('class_names', '', 'File with the name of each class: JSON, CSV, or text '
                        "with a name a line; default: the run's.")
    flags.DEFINE_string('endpoint_name', None, 'An endpoint of the network, such as '
                        'pooled_features, to be an output beside the predictions.')
    flags.DEFINE_bool('quantize', None, 'TFLite in integers: --formats=tflite writes it as well, '
                      '--output_tflite instead. Default: for --output_tflite with --data_dir.')
    flags.DEFINE_integer('num_steps', 200, 'Images that --quantize measures ranges with.',
                         lower_bound=1)
    flags.DEFINE_string('data_dir', '', 'Folder of TFRecord shards: images to check the exports '
                        "and to quantize with; default: the run's.")
    app.define_text_flags(layout.FLAGS)
    flags.DEFINE_float('tolerance', None, 'Largest difference from the checkpoint: of a logit, in '
                       f'parts of the largest (default: {verify.FLOAT_TOLERANCE.limit:g}); in '
                       f'integers of a probability (default: {verify.INTEGER_TOLERANCE.limit:g}).',
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
    """Writes and checks each of `targets`.

    Args:
      trained: a `TrainedModel`.
      targets: list of (format, path, batch size), the formats being FORMATS and INTEGER_TFLITE,
        the batch size None for any.
      input_name: `inference_graph.IMAGE`, `inference_graph.IMAGE_BYTES` or None, as --input.
      data_dir: folder of TFRecord shards, or '' for the run's.
      num_steps: images that integers are measured with.
      tolerance: limit of the `verify.Tolerance`, or None for the format's own.
      shards: `layout.Layout` of data_dir.

    Yields:
      a `verify.ExportReport` for each.

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
    """Yields images [1, height, width, 3] of the training split, else of the validation split."""
    if not data_dir:
        raise UserError('--quantize needs images; name their folder with --data_dir.')
    split = schema.TRAIN if shards.has_shards(data_dir, schema.TRAIN) else schema.VALIDATION
    images = itertools.islice(export_images.of_split(data_dir, split, shards), num_steps)
    with export_images.Decoder(trained.image_size, trained.builder.resize_method,
                               trained.max_image_pixels) as decoder:
        num_good = 0
        for image in tqdm.tqdm(images, 'calibrating', num_steps, disable=None, leave=False):
            _, pixels, faults = decoder.decode_all([image])
            for fault in faults:
                logging.warning('Not measured with: %s', fault)
            if pixels is not None:
                num_good += 1
                yield pixels
    if not num_good:
        raise UserError(f'{data_dir} has no readable {split} image to quantize with; name another '
                        'folder with --data_dir.')


def _check(options, formats):
    """UserError where flags do not go together, before any work."""
    if not options.output_dir and (
            formats or not (options.output_saved_model_dir or options.output_tflite)):
        raise UserError('--output_dir is not given; name the folder to write to.')
    takes_floats = [name for name in ('tflite', 'onnx') if name in formats]
    takes_floats += ['output_tflite'] * bool(options.output_tflite)
    if options.input == inference_graph.IMAGE_BYTES and takes_floats:
        raise UserError(f'--input={inference_graph.IMAGE_BYTES} is not possible with '
                        f'{takes_floats[0]}, which cannot decode images; leave one of them out.')
    _check_ascend(options, formats)
    layout.check_used(options.flag_values_dict(), options.data_dir)
    if options.quantize and not ('tflite' in formats or options.output_tflite):
        raise UserError('--quantize is for TFLite; add tflite to --formats.')
    if 'onnx' in formats:
        onnx.check_installed()
    for name in ('output_dir', 'output_saved_model_dir'):
        if options[name].value:
            check_output_folder(options[name].value, f'--{name}')
    if options.output_tflite:
        if not options.output_tflite.endswith('.tflite'):
            raise UserError(f'--output_tflite={options.output_tflite} does not end in .tflite, by '
                            'which other programs know it; choose another name.')
        check_output_file(
            options.output_tflite, '--output_tflite',
            [options.class_names, options.data_dir], '.tflite',
            makes_folders=True, is_export=True)


def _check_ascend(options, formats):
    """UserError where flags of frozen graphs for Ascend do not go together."""
    for text in options.batch_sizes:
        _number(text, 'batch_sizes')
    if options.batch_sizes and options.batch_size != FREE:
        raise UserError('--batch_sizes and --batch_size are both given; keep one of them.')
    for name in ('batch_sizes', 'soc_version', 'atc_precision_mode', 'aipp'):
        if options[name].value != options[name].default and not _is_for_atc(options, formats):
            raise UserError(f'--{name} is for frozen graphs of float images; add frozen to '
                            f'--formats, without --input={inference_graph.IMAGE_BYTES}, or leave '
                            'it out.')
    if options.soc_version not in frozen_graph.SOC_VERSIONS:
        logging.warning('--soc_version=%s is not known here; compare it with npu-smi info.',
                        options.soc_version)


def _is_for_atc(options, formats):
    # ATC has no decoder of images.
    return 'frozen' in formats and options.input != inference_graph.IMAGE_BYTES


def _can_be_compiled(trained, path, batch_size):
    """Whether convert.sh compiles a frozen graph: CondConv's only for a fixed batch size."""
    is_static = path.endswith(f'_bs{batch_size}.pb')
    # The shapes inside CondConv depend on the batch, which ATC wants to know.
    return is_static or 'condconv' not in trained.model_name


def _checkpoint(options):
    if bool(options.ckpt_dir) == bool(options.checkpoint):
        raise UserError('Give --ckpt_dir or --checkpoint, and not both.')
    flag = 'ckpt_dir' if options.ckpt_dir else 'checkpoint'
    path = options[flag].value
    if flag == 'ckpt_dir' and not store.latest(path):
        raise UserError(f'{path} holds no checkpoint; check --ckpt_dir.')
    return store.find(conversion.as_checkpoint(path, flag), flag)


def _batch_size(text):
    if text == FREE:
        return None
    return _number(text, 'batch_size', f'neither {FREE} nor')


def _number(text, flag, is_none='not'):
    largest = setting.LARGEST_BATCH_SIZE
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= largest):
        raise UserError(f'--{flag}={text} is {is_none} a number from 1 to {largest}.')
    return int(text)


def _targets(trained, options, formats, batch_size):
    """(format, path, batch size) of everything to be written, in order."""
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
    # The likeliest to miss its tolerance comes last.
    return sorted(targets, key=lambda target: target[0] == INTEGER_TFLITE)


def _static_sizes(trained, options, batch_size):
    """Batch sizes that get a frozen graph of their own, each once."""
    if options.batch_sizes:
        return sorted(set(map(int, options.batch_sizes)))
    return [batch_size or 1] if 'condconv' in trained.model_name else []


if __name__ == '__main__':
    define_flags()
    app.run(main)
