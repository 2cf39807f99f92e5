"""The flags of the network that a benchmark measures."""
from config import setting
import model_builder_factory


def define(flags, batch_size):
    """Registers --model_name and --batch_size.

    Args:
      flags: the module absl.flags of an entry point.
      batch_size: int, default of --batch_size.
    """
    # The flags count as those of the calling module, so that its --help lists them.
    flags.disclaim_key_flags()
    flags.DEFINE_enum('model_name', 'efficientnet-condconv-b0-8e',
                      model_builder_factory.MODEL_NAMES, 'The network.')
    flags.DEFINE_integer('batch_size', batch_size, 'Images a step.', lower_bound=1,
                         upper_bound=setting.LARGEST_BATCH_SIZE)


def define_image_size(flags):
    """Registers --image_size, whose value `image_size` returns; `flags` as for `define`."""
    flags.disclaim_key_flags()
    setting.define_image_size('image_size', None, 'Side of the images, or HEIGHTxWIDTH; default: '
                              "the model's own.")


def image_size(options):
    """Returns the value of --image_size, or else the model's own size.

    Args:
      options: object with the flags as attributes.
    """
    return options.image_size or model_builder_factory.get_model_input_size(options.model_name)
