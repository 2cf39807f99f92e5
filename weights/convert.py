"""Converts weights of EfficientNets between PyTorch (timm), Google's checkpoints and this program.

    python3.7 -m weights.convert --input=tf_efficientnet_b0.in1k.safetensors --output_dir=DIR
    python3.7 -m weights.convert --input=MODEL_DIR --output_dir=DIR --to=timm

DIR then holds a checkpoint that main.py --init_checkpoint, main.py --mode=eval --eval_once
--model_dir, export_model.py and predict.py take; or what --to names. docs/weights.md says where
weights are published.
"""
from absl import flags

from common import app
from common.errors import UserError
import model_builder_factory
from weights import comparison
from weights import conversion


def define_flags():
    flags.DEFINE_string('input', '', 'File of weights (.safetensors, .pth; .tar.gz of a '
                        'checkpoint), a checkpoint, or the folder of one.')
    flags.DEFINE_string('output_dir', '', 'Folder that the weights are written to: new or empty, '
                        'but for --to=timm.')
    flags.DEFINE_enum('to', conversion.CHECKPOINT, conversion.FORMS, "checkpoint: this program's; "
                      "timm: <timm's name>.safetensors; tensorflow: a checkpoint as Google's.")
    flags.DEFINE_string('timm_name', '', "timm's name of the network, where neither the file nor "
                        'its folder says it: tf_efficientnet_b0, or tf_efficientnet_b0.ap_in1k for '
                        'weights of AdvProp.')
    flags.DEFINE_enum('model_name', None, model_builder_factory.MODEL_NAMES,
                      'The network; default: what the weights say.')
    flags.DEFINE_string('class_names', '', 'File with the name of each class, which weights do not '
                        'have: JSON, CSV, or text with a name a line.')
    flags.DEFINE_bool('enable_ema', True, '--to=timm: the moving average of the weights.')
    flags.DEFINE_bool('verify', False, 'Compare the logits with those of timm, which loads what '
                      '--to=timm writes. Without --input: of random weights of --model_name.')
    flags.DEFINE_string('pytorch_python', '', '--verify: Python interpreter of an environment with '
                        'torch and timm.')


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
    """UserError where flags do not go together, before any work."""
    if options.verify != bool(options.pytorch_python):
        raise UserError('--verify and --pytorch_python go together; give both or none.')
    if not options.input and not (options.verify and options.model_name):
        raise UserError('--input is not given; name the weights to read.')
    if options.output_dir:
        conversion.check_output(options.output_dir, options.to)
    elif not options.verify:
        raise UserError('--output_dir is not given; name the folder to write to.')


def _write(weights, options):
    path = conversion.write(weights, options.to, options.output_dir, options.enable_ema)
    averages = ' and their moving averages' if weights.averages else ''
    print(f'{path}: {weights.model_name}, {weights.num_classes} classes; weights{averages}.')
    if not weights.class_names:
        print('The classes have no names, which weights do not hold; --class_names gives them.')


if __name__ == '__main__':
    define_flags()
    app.run(main)
