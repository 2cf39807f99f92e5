"""The row of a setting in the tables of the groups, and limits that hold in every program."""
import dataclasses

# What every program takes at most: beyond any use, and within what TensorFlow counts with.
LARGEST_IMAGE_SIZE = 4096          # pixels
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
