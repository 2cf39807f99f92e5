"""Classifies images with a checkpoint or an exported model, and measures its accuracy.

    python3.7 predict.py --saved_model=DIR IMAGE_OR_FOLDER...
    python3.7 predict.py --saved_model=MODEL.onnx --data_dir=DIR

Images are files in any format that Pillow reads; Exif orientation is applied. A directory stands
for all images in it, a TFRecord file for its records. With --data_dir, the validation images of a
dataset are evaluated.
"""
import collections
import contextlib
import itertools
import sys

from absl import flags
import numpy as np
import tensorflow.compat.v1 as tf
import tqdm

from checkpoints import store
from common import app
from common import ranks
from common import text_tables
from common.errors import UserError
from common.errors import first_line
from common.files import whole_file
from common.paths import check_output_file
from config import normalization
from config import setting
from export import images as export_images
from export import loading
from export import trained_model
import model_builder_factory
from tfrecords import class_labels
from tfrecords import image_formats
from tfrecords import layout
from tfrecords import schema
from weights import conversion

NUM_SHOWN = 20             # skipped files that are named

Prediction = collections.namedtuple('Prediction', 'image ranking probabilities')


def define_flags():
    flags.DEFINE_string('saved_model', '', 'Output of export_model.py: a SavedModel, the directory '
                        'of its versions, or a .pb, .tflite or .onnx file.')
    flags.DEFINE_string('checkpoint', '', 'Alternative to --saved_model: a checkpoint, a directory '
                        'whose newest checkpoint is used, or a weight file such as .safetensors.')
    flags.DEFINE_bool('enable_ema', True, 'With --checkpoint: use the moving averages of the '
                      'weights.')
    flags.DEFINE_enum('model_name', None, model_builder_factory.MODEL_NAMES, 'With --checkpoint: '
                      "name of the network; default: the name in the run's config.json.")
    flags.DEFINE_integer('num_label_classes', None, 'With --checkpoint: number of classes; '
                         'default: the number of the checkpoint.', lower_bound=2,
                         upper_bound=setting.LARGEST_NUM_CLASSES)
    setting.define_image_size('image_size', None, 'With --checkpoint: size of the input images in '
                              'pixels, a number for squares or HEIGHTxWIDTH; default: the size of '
                              "the run, else the model's own.")
    normalization.define_flags()
    flags.DEFINE_string('data_dir', '', 'Directory of TFRecord shards whose validation images are '
                        'evaluated.')
    app.define_text_flags(layout.EVAL_FLAGS)
    flags.DEFINE_integer('label_base', None, 'Label of the first class in the records, 0 or 1; '
                         'default: the value in dataset_info.json, else 0 with the label key of '
                         'TFDS, else 1.', lower_bound=0, upper_bound=1)
    flags.DEFINE_integer('top_k', 5, 'Number of classes to print for each image.', lower_bound=1)
    flags.DEFINE_string('class_names', '', 'File of the class names: JSON, CSV, or text with one '
                        'name per line; default: the class names of the model. --labels is another '
                        'name for this flag.')
    flags.DEFINE_alias('labels', 'class_names')
    flags.DEFINE_enum('class_names_from', None, class_labels.SOURCES, 'How labels are mapped if '
                      'the class names of the records differ from those of the model, or their '
                      'order differs. model: match classes by name; data: use the labels '
                      'unchanged. Default: stop with an error.')
    flags.DEFINE_string('csv', '', 'Write the predictions to this CSV file instead of stdout.')
    flags.DEFINE_integer('max_image_pixels', image_formats.MAX_IMAGE_PIXELS, 'Maximum number of '
                         'pixels (height x width) of an image; a larger image is an error. The '
                         'limit protects against decompression bombs.', lower_bound=1,
                         upper_bound=app.LARGEST_INTEGER)
    flags.DEFINE_integer('batch_size', 32, 'Number of images per batch.', lower_bound=1,
                         upper_bound=setting.LARGEST_BATCH_SIZE)


def main(argv):
    options = flags.FLAGS
    if bool(argv[1:]) == bool(options.data_dir):
        raise UserError('no images given; name files or directories after the flags, or use '
                        '--data_dir.'
                        if not options.data_dir else
                        '--data_dir and image paths: mutually exclusive; keep one of them.')
    if options.eval_pattern and not options.data_dir:
        raise UserError('--eval_pattern: applies only to --data_dir; leave it out.')
    if options.csv:
        check_output_file(
            options.csv, '--csv', [options.saved_model, options.checkpoint, options.data_dir,
                                   options.class_names, *argv[1:]], '.csv')
    app.end_with_the_reader()
    with _model(options) as model:
        names = model.class_names
        if options.class_names:
            names = class_labels.read(options.class_names, 'class_names')
        skipped = []
        images, total = _images(argv[1:], options, skipped, model)
        score = _Score(options.label_base, model.class_names, options.class_names_from, names)
        with _sink(options, names) as write:
            for prediction in _predictions(model, images, total, options, score.fail):
                score.add(prediction)
                write(prediction)
    return score.finish(skipped)


@contextlib.contextmanager
def _model(options):
    if bool(options.saved_model) == bool(options.checkpoint):
        raise UserError('--saved_model and --checkpoint: exactly one is required; give one of '
                        'them.')
    for name in ('model_name', 'num_label_classes', 'image_size', 'normalization',
                 'advprop_preprocessing'):
        if options.saved_model and options[name].value is not None:
            raise UserError(f'--{name}: applies only to --checkpoint, because --saved_model stores '
                            'this setting; leave it out.')
    if options.saved_model:
        loaded = loading.load(options.saved_model)
    else:
        loaded = loading.from_trained(trained_model.from_checkpoint(
            store.find(conversion.as_checkpoint(options.checkpoint, 'checkpoint'), 'checkpoint'),
            options.model_name, options.num_label_classes, options.image_size,
            options.enable_ema, normalization=normalization.given(options)))
    with loaded as model:
        yield model


def _images(paths, options, skipped, model):
    """Returns an iterator over the images and their number, None if unknown before reading."""
    shards = layout.Layout.of(options.flag_values_dict())
    if options.data_dir:
        shards = shards.in_folder(options.data_dir, model.data_dir, model.shards)
        info = schema.DatasetInfo.load(options.data_dir)
        return (export_images.of_split(options.data_dir, schema.VALIDATION, shards),
                info and info.num_images[schema.VALIDATION])
    images = export_images.find(paths, skipped, options.max_image_pixels, shards)
    if any(tf.gfile.IsDirectory(path) or export_images.is_records(path) for path in paths):
        return images, None
    return images, len(paths)


def _predictions(model, images, total, options, fail):
    """Yields a `Prediction` for each image; calls `fail` with the reason if one is unreadable."""
    decoder = export_images.Decoder(
        model.image_size, model.resize_method, options.max_image_pixels)
    with decoder, tqdm.tqdm(total=total, unit=' images', disable=None, leave=False) as progress:
        while True:
            batch = list(itertools.islice(images, options.batch_size))
            if not batch:
                return
            good, pixels, reasons = decoder.decode_all(batch)
            for reason in reasons:
                fail(reason)
            if good:
                predictions = model.predict(pixels)
                probabilities = predictions['probabilities']
                if not np.isfinite(probabilities).all():
                    raise UserError(f'{good[0].name}: the predicted probabilities are not finite; '
                                    'check the weights of the model, and export it again.')
                yield from map(
                    Prediction, good, ranks.ranked_classes(predictions), probabilities)
            progress.update(len(batch))


@contextlib.contextmanager
def _sink(options, names):
    """Yields a function that writes a `Prediction` to the CSV file, to stdout, or nowhere."""
    lines = _Lines(options, names)
    if not options.csv:
        yield (lambda prediction: None) if options.data_dir else lines.print_text
        return
    try:
        with whole_file(options.csv) as file:
            table = text_tables.CsvWriter(file)
            table.writerow(lines.heading())
            yield lambda prediction: table.writerow(lines.row(prediction))
    except tf.errors.OpError as error:
        raise UserError(f'--csv={options.csv}: cannot be written ({first_line(error)}); choose '
                        'another file.') from error


class _Lines:
    """Formats predictions as text or table rows: the top k classes, names and probabilities."""

    def __init__(self, options, names):
        self._top_k, self._names, self._labels_path = options.top_k, names, options.class_names

    def print_text(self, prediction):
        guesses = '  '.join(f'{name} {probability:.3f}'
                            for _, name, probability in self._top_classes(prediction))
        tqdm.tqdm.write(f'{prediction.image.name}  {guesses}')

    def heading(self):
        return ['image', 'label'] + [f'{column}_{rank}' for rank in range(1, self._top_k + 1)
                                     for column in ('class', 'name', 'probability')]

    def row(self, prediction):
        label = prediction.image.label
        row = [prediction.image.name, '' if label is None else label]
        for index, name, probability in self._top_classes(prediction):
            row += [index, name, f'{probability:.6f}']
        # Pads the row if the model has fewer than top_k classes.
        return row + [''] * (2 + 3 * self._top_k - len(row))

    def _top_classes(self, prediction):
        """Returns (class index, name, probability) of the top k classes."""
        probabilities = prediction.probabilities
        if self._names and len(self._names) != len(probabilities):
            raise UserError(f'--class_names={self._labels_path}: contains {len(self._names)} '
                            f'names, but the model has {len(probabilities)} classes; name another '
                            'file.')
        return [(index, self._names[index] if self._names else str(index), probabilities[index])
                for index in prediction.ranking[:self._top_k]]


class _Score:
    """Counts correct predictions on labelled images, and images that could not be read."""

    def __init__(self, label_base, class_names, names_from, shown_names):
        self._classes = export_images.LabelClasses(
            label_base, class_names, names_from, shown_names)
        self._num_labelled = self._num_top_1 = self._num_top_5 = self._num_failed = 0

    def fail(self, sentence):
        self._num_failed += 1
        tqdm.tqdm.write(f'predict.py: error: {sentence}', file=sys.stderr)

    def add(self, prediction):
        image, ranking = prediction.image, prediction.ranking
        if image.label is None:
            return
        index = self._classes.of(image, len(ranking))
        self._num_labelled += 1
        self._num_top_1 += ranking[0] == index
        self._num_top_5 += index in ranking[:5]

    def finish(self, skipped):
        """Prints accuracy, skipped files and failures; returns the exit code."""
        if self._num_labelled:
            print(f'top-1 {self._num_top_1 / self._num_labelled:.4f}  '
                  f'top-5 {self._num_top_5 / self._num_labelled:.4f}  '
                  f'on {self._num_labelled} images')
        if skipped:
            more = f' and {len(skipped) - NUM_SHOWN} more' if len(skipped) > NUM_SHOWN else ''
            print(f"predict.py: {len(skipped)} file{'s' * (len(skipped) != 1)} skipped, no image "
                  f"file extension: {', '.join(skipped[:NUM_SHOWN])}{more}", file=sys.stderr)
        if not self._num_failed:
            return None
        print(f"predict.py: error: {self._num_failed} input{'s' * (self._num_failed != 1)} could "
              'not be read; see above.', file=sys.stderr)
        return app.EXIT_FAILED


if __name__ == '__main__':
    define_flags()
    app.run(main, takes_arguments=True)
