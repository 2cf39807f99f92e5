"""Defines the rows of the settings tables, and limits that are common to all programs."""
import dataclasses

from absl import flags

from common.image_sizes import ImageSize

# Limits of every program: beyond any practical use, and within TensorFlow's integer range.
LARGEST_IMAGE_SIZE = 4096          # pixels of a side
SMALLEST_IMAGE_SIZE = 8
LARGEST_NUM_CLASSES = 1000000
LARGEST_BATCH_SIZE = 65536         # images
# Limit of a float setting without a limit of its own, beyond any practical use.
LARGEST_FLOAT = 1e9


def row(default, help_text, choices=None, derived=None, **limits):
    """Returns the dataclass field of a setting.

    Args:
      default: default value of the flag; None for an optional setting.
      help_text: help text of the flag.
      choices: the allowed values; None for any.
      derived: function of (the `Config` so far, the `schema.DatasetInfo`) -> the value of a setting
        that is not given; None if there is no derived default. Settings are derived in table order.
      **limits: bounds of the value: at_least, above, at_most, below.
    """
    return dataclasses.field(default=default, metadata=dict(
        help=help_text, choices=choices, derived=derived, limits=limits))


class _ImageSizeParser(flags.ArgumentParser):
    """Parses the text of a flag into a `WrittenSize` and checks the limits."""
    syntactic_help = 'a number of pixels, or HEIGHTxWIDTH'

    def parse(self, argument):
        size = ImageSize.of(argument)
        if not SMALLEST_IMAGE_SIZE <= min(size) <= max(size) <= LARGEST_IMAGE_SIZE:
            raise ValueError(
                f'a side must be from {SMALLEST_IMAGE_SIZE} to {LARGEST_IMAGE_SIZE} pixels')
        return size.written

    def flag_type(self):
        return 'image size'


def define_image_size(name, default, help_text, flag_values=flags.FLAGS):
    """Registers a flag whose value is a `WrittenSize` or None."""
    # Attributes the flag to the calling module, so that the --help of the program lists it.
    flags.disclaim_key_flags()
    flags.DEFINE(_ImageSizeParser(), name, default, help_text, flag_values,
                 flags.ArgumentSerializer())
