"""The row of a setting in the tables of the groups, and limits that hold in every program."""
import dataclasses

from absl import flags

from common.image_sizes import ImageSize

# What every program takes at most: beyond any use, and within what TensorFlow counts with.
LARGEST_IMAGE_SIZE = 4096          # pixels of a side
SMALLEST_IMAGE_SIZE = 8
LARGEST_NUM_CLASSES = 1000000
LARGEST_BATCH_SIZE = 65536         # images
# Of a setting that has no limit of its own: beyond any use.
LARGEST_FLOAT = 1e9


def row(default, help_text, choices=None, derived=None, **limits):
    """Returns the row of a setting.

    Args:
      default: of the flag; None for a setting that may be left open.
      help_text: of the flag.
      choices: the values it may have, or None for any.
      derived: function of (the `Config` so far, the `schema.DatasetInfo`) -> the value of a setting
        that is not given; None for one that has no other default. Rows are filled in from the top.
      **limits: at_least, above, at_most, below.
    """
    return dataclasses.field(default=default, metadata=dict(
        help=help_text, choices=choices, derived=derived, limits=limits))


class _ImageSizeParser(flags.ArgumentParser):
    """Parses a flag's text to a `WrittenSize` within the limits."""
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
    """Registers a flag whose value is a `WrittenSize`, or None."""
    # It counts as the caller's own, so that the --help of an entry point lists it.
    flags.disclaim_key_flags()
    flags.DEFINE(_ImageSizeParser(), name, default, help_text, flag_values,
                 flags.ArgumentSerializer())
