"""The flag --normalization and its other name in Google's scripts, --advprop_preprocessing."""
from absl import flags

from common.errors import UserError
import efficientnet_builder

_OWN = ''


def define_flags(flag_values=flags.FLAGS):
    """Registers both flags for a program that reads a checkpoint; main.py has a setting instead."""
    # Attributes the flags to the calling module, so that the --help of the program lists them.
    flags.disclaim_key_flags()
    flags.DEFINE_enum(
        'normalization', None, tuple(efficientnet_builder.NORMALIZATIONS), 'How images are '
        "normalized; default: as in the config.json of the checkpoint's run, else the model's own "
        'way.', flag_values=flag_values)
    define_googles_name(flag_values)


def define_googles_name(flag_values=flags.FLAGS):
    """Registers --advprop_preprocessing."""
    flags.disclaim_key_flags()
    flags.DEFINE_bool(
        'advprop_preprocessing', None, f'Another name for --normalization='
        f'{efficientnet_builder.ADVPROP}; false selects the model\'s own way.',
        flag_values=flag_values)


def given(flag_values=flags.FLAGS):
    """Returns the normalization that the two flags select.

    Returns:
      a key of `efficientnet_builder.NORMALIZATIONS`, '' for the model's own, or None if neither
      flag is given.

    Raises:
      UserError: the two flags contradict each other.
    """
    is_advprop, named = (
        flag_values[name].value for name in ('advprop_preprocessing', 'normalization'))
    if is_advprop is None:
        return named
    normalization = efficientnet_builder.ADVPROP if is_advprop else _OWN
    if named not in (None, normalization):
        raise UserError(f"--normalization={named}: contradicts --{'no' * (not is_advprop)}"
                        'advprop_preprocessing; keep one of them.')
    return normalization
