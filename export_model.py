"""Exports a checkpoint as a SavedModel.

    python3.7 export_model.py --ckpt_dir=MODEL_DIR --output_dir=DIR

writes DIR/<step>/, which TensorFlow Serving and predict.py load. Signatures: 'serving_default'
takes `image_bytes` (JPEG or PNG files, any number, any size), 'image' takes `image` (float32
[batch, size, size, 3], RGB in [0, 255]). Both return `classes`, `probabilities` and `logits`.
"""
import os

from absl import flags
from absl import logging
import tensorflow.compat.v1 as tf

import entry_point
import imagenet_input
import model_builder_factory
from training import checkpoints
from training import config as configs
from user_error import UserError


def define_flags():
    flags.DEFINE_string('ckpt_dir', '', "Folder with the checkpoint: training's --model_dir.")
    flags.DEFINE_string('output_dir', '', 'The SavedModel is written to a folder named by the step '
                        'in here.')
    flags.DEFINE_enum('model_name', None, model_builder_factory.MODEL_NAMES,
                      "The network; default: what the folder's config.json says.")
    flags.DEFINE_integer('num_label_classes', None, 'Classes; default: as above.')
    flags.DEFINE_integer('image_size', None, 'Side of the input images; default: as above.')
    flags.DEFINE_bool('enable_ema', True, 'Export the moving average of the weights.')


def main(_):
    options = flags.FLAGS
    for name in ('ckpt_dir', 'output_dir'):
        if not options[name].value:
            raise UserError(f'--{name} is not given; name the folder.')
    path = export(options.ckpt_dir, options.output_dir, options.model_name,
                  options.num_label_classes, options.image_size, options.enable_ema)
    logging.info('SavedModel written to %s.', path)


def export(ckpt_dir, output_dir, model_name=None, num_classes=None, image_size=None,
           enable_ema=True):
    """Exports the newest checkpoint of `ckpt_dir`; returns the SavedModel's folder.

    What is None comes from the folder's config.json; a contradiction with it is a UserError.
    """
    checkpoint = checkpoints.latest(ckpt_dir)
    if not checkpoint:
        raise UserError(f'{ckpt_dir} holds no checkpoint; check --ckpt_dir.')
    config = configs.load(ckpt_dir)
    model_name = _agreed('model_name', model_name, config and config.model.model_name)
    num_classes = _agreed('num_label_classes', num_classes,
                          config and config.model.num_label_classes)
    checkpoints.check_model(checkpoint, model_name, num_classes)
    image_size = (image_size or config and config.optimization.input_image_size
                  or model_builder_factory.get_model_input_size(model_name))
    overrides = config.model_overrides if config else {'num_classes': num_classes}
    weights = checkpoints.EMA if enable_ema and checkpoints.has_ema(checkpoint) else checkpoints.RAW

    final_dir = os.path.join(output_dir, str(checkpoints.step_of(checkpoint)))
    partial_dir = f'{final_dir}.partial'
    _remove(partial_dir)
    builder = model_builder_factory.get_model_builder(model_name)
    with tf.Graph().as_default(), tf.Session() as session:
        image_bytes = tf.placeholder(tf.string, [None], name='image_bytes')
        images = imagenet_input.serving_input(image_bytes, image_size, builder.resize_method)
        logits, _ = builder.build_model(
            builder.normalize(images), model_name, training=False, override_params=overrides)
        predictions = builder.predictions(logits)
        checkpoints.weights_saver(weights, checkpoint).restore(session, checkpoint)
        saved_model = tf.saved_model.Builder(partial_dir)
        saved_model.add_meta_graph_and_variables(
            session, [tf.saved_model.tag_constants.SERVING],
            signature_def_map={
                'serving_default': tf.saved_model.predict_signature_def(
                    {'image_bytes': image_bytes}, predictions),
                'image': tf.saved_model.predict_signature_def({'image': images}, predictions)})
        saved_model.save()
    if config and config.class_names:
        _write_labels(partial_dir, config.class_names)
    _remove(final_dir)
    tf.gfile.Rename(partial_dir, final_dir)
    return final_dir


def _agreed(name, given, configured):
    if given is None and configured is None:
        raise UserError(f'--{name} is not given, and there is no config.json that says it.')
    if None not in (given, configured) and given != configured:
        raise UserError(f'--{name}={given} contradicts the config.json beside the checkpoint, '
                        f'which says {configured}; leave the flag out.')
    return configured if given is None else given


def _remove(folder):
    if tf.gfile.Exists(folder):
        tf.gfile.DeleteRecursively(folder)


def _write_labels(saved_model_dir, class_names):
    extra_dir = os.path.join(saved_model_dir, 'assets.extra')
    tf.gfile.MakeDirs(extra_dir)
    with tf.gfile.GFile(os.path.join(extra_dir, 'labels.txt'), 'w') as file:
        file.write('\n'.join(class_names) + '\n')


if __name__ == '__main__':
    define_flags()
    entry_point.run(main)
