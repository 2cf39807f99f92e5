"""--normalization by its two names: the settings' own, and Google's --advprop_preprocessing."""
from absl import flags

from common.errors import UserError
import efficientnet_builder

_OWN = ''


def define_flags(flag_values=flags.FLAGS):
    """Registers both names for a program that takes a checkpoint; main.py has a setting."""
    # They count as the caller's own, so that the --help of an entry point lists them.
    flags.disclaim_key_flags()
    flags.DEFINE_enum(
        'normalization', None, tuple(efficientnet_builder.NORMALIZATIONS), 'How the images of a '
        "checkpoint are normalized; default: what the run's config.json says, else the model's own "
        'way.', flag_values=flag_values)
    define_googles_name(flag_values)


def define_googles_name(flag_values=flags.FLAGS):
    """Registers --advprop_preprocessing."""
    flags.disclaim_key_flags()
    flags.DEFINE_bool(
        'advprop_preprocessing', None, f'Another name for --normalization='
        f'{efficientnet_builder.ADVPROP}; false is the model\'s own way.', flag_values=flag_values)


def given(flag_values=flags.FLAGS):
    """Returns what either name says: a normalization, '' for the model's own, None for neither.

    Raises:
      UserError: they contradict each other.
    """
    is_advprop, named = (
        flag_values[name].value for name in ('advprop_preprocessing', 'normalization'))
    if is_advprop is None:
        return named
    normalization = efficientnet_builder.ADVPROP if is_advprop else _OWN
    if named not in (None, normalization):
        raise UserError(f"--normalization={named} contradicts --{'no' * (not is_advprop)}"
                        'advprop_preprocessing; keep one of them.')
    return normalization
