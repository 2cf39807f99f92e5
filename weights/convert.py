"""Converts EfficientNet weights between PyTorch (timm), Google's checkpoints and this program.

    python3.7 -m weights.convert --input=tf_efficientnet_b0.in1k.safetensors --output_dir=DIR
    python3.7 -m weights.convert --input=MODEL_DIR --output_dir=DIR --to=timm

DIR then contains a checkpoint for main.py --init_checkpoint, main.py --mode=eval --eval_once
--model_dir, export_model.py and predict.py; or the format selected by --to. docs/weights.md lists
published weights.
"""
from absl import flags

from common import app
from common.errors import UserError
import model_builder_factory
from weights import comparison
from weights import conversion


def define_flags():
    flags.DEFINE_string('input', '', 'Weights to convert: a weight file (.safetensors, .pth, or '
                        '.tar.gz of a checkpoint), a checkpoint, or the directory of one.')
    flags.DEFINE_string('output_dir', '', 'Directory that the weights are written to; must be new '
                        'or empty, except with --to=timm.')
    flags.DEFINE_enum('to', conversion.CHECKPOINT, conversion.FORMS, 'Output format. checkpoint: a '
                      "checkpoint of this program; timm: <timm's name>.safetensors; tensorflow: a "
                      "checkpoint like Google's.")
    flags.DEFINE_string('timm_name', '', "timm's name of the network, required if neither the file "
                        'nor its directory contains it: tf_efficientnet_b0, or '
                        'tf_efficientnet_b0.ap_in1k for AdvProp weights.')
    flags.DEFINE_enum('model_name', None, model_builder_factory.MODEL_NAMES,
                      'Name of the network; default: detected from the weights.')
    flags.DEFINE_string('class_names', '', 'File of the class names, which weight files do not '
                        'contain: JSON, CSV, or text with one name per line.')
    flags.DEFINE_bool('enable_ema', True, 'With --to=timm: write the moving averages of the '
                      'weights.')
    flags.DEFINE_bool('verify', False, 'Compare the logits with those of timm, which loads the '
                      'output of --to=timm. Without --input, random weights of --model_name are '
                      'compared.')
    flags.DEFINE_string('pytorch_python', '', 'With --verify: Python interpreter of an environment '
                        'with torch and timm.')


def main(_):
    options = flags.FLAGS
    _check(options)
    if options.input:
        weights = conversion.read(options.input, 'input', options.timm_name, options.model_name)
        if options.class_names:
            weights = conversion.named(weights, options.class_names)
    else:
        weights = comparison.random_weights(options.model_name, options.pytorch_python)
    if options.verify:
        print(comparison.compare(weights, options.pytorch_python), flush=True)
    if options.output_dir:
        _write(weights, options)


def _check(options):
    """Raises UserError if flags are missing or incompatible, before any work starts."""
    if options.verify != bool(options.pytorch_python):
        raise UserError('--verify and --pytorch_python: one requires the other; give both or '
                        'neither.')
    if not options.input and not (options.verify and options.model_name):
        raise UserError('--input: not given; name the weights to read.')
    if options.output_dir:
        conversion.check_output(options.output_dir, options.to)
    elif not options.verify:
        raise UserError('--output_dir: not given; name the directory to write to.')


def _write(weights, options):
    path = conversion.write(weights, options.to, options.output_dir, options.enable_ema)
    averages = ' and their moving averages' if weights.averages else ''
    print(f'{path}: {weights.model_name}, {weights.num_classes} classes; weights{averages}.')
    if not weights.class_names:
        print('Class names: none, because weight files do not contain them; add them with '
              '--class_names.')


if __name__ == '__main__':
    define_flags()
    app.run(main)
