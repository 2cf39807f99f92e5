"""Determines the network and the origin of a weight file from its name and metadata.

timm has two variants of most networks: `tf_efficientnet_b0` has the padding and the batch-norm
epsilon of TensorFlow, `efficientnet_b0` those of PyTorch. Their weights have the same names and
shapes, so that only names and metadata can tell them apart.

This module imports no TensorFlow, because programs under PyTorch's interpreter use it too.
"""
import hashlib
import os
import re
from typing import NamedTuple

from common.errors import UserError

# Our name -> timm's name, without the common prefixes, for the networks whose names differ.
_TIMM_NAMES = {'condconv-b0-4e': 'cc_b0_4e', 'condconv-b0-8e': 'cc_b0_8e',
               'condconv-b0-8e-depth': 'cc_b1_8e', 'edgetpu-S': 'es', 'edgetpu-M': 'em',
               'edgetpu-L': 'el'}
_MODEL_NAMES = {timm: ours for ours, timm in _TIMM_NAMES.items()}
_MODEL_PREFIX, _TIMM_PREFIX = 'efficientnet-', 'tf_efficientnet_'
_ADVPROP_TAG = '.ap_in1k'

# Name of a network in timm, its repositories and its torch files, with the tags that follow.
_NAME = re.compile(
    r'(?<![a-z0-9])(?P<prefix>tf_|adv-)?efficientnet[_-]'
    r'(?P<size>cc_b0_[48]e|cc_b1_8e|b[0-8]|l2|lite[0-4]|e[sml])(?![a-z0-9])(?P<tags>[\w.-]*)',
    re.IGNORECASE)
_ADVPROP = re.compile(r'[._]ap(?![a-z0-9])', re.IGNORECASE)
# File names of torch.hub end in the first digits of the file's SHA-256.
_HASHED_NAME = re.compile(r'-([0-9a-f]{8})\.pth$')
# Parent directories searched for a name: .../models--timm--NAME/snapshots/HASH/model.safetensors
_NUM_FOLDERS = 3


class Origin(NamedTuple):
    """A network named by a file name, its metadata or a flag.

    Attributes:
      model_name: our name of the network.
      is_tf: whether it is the variant with TensorFlow's padding.
      is_advprop: whether it was trained with AdvProp, which uses another normalization.
      place: where the name was found, for messages.
    """
    model_name: str
    is_tf: bool
    is_advprop: bool
    place: str


def timm_name(model_name, is_advprop=False):
    """Returns timm's name of the variant of our network that has Google's weights."""
    size = model_name[len(_MODEL_PREFIX):]
    return _TIMM_PREFIX + _TIMM_NAMES.get(size, size) + _ADVPROP_TAG * is_advprop


def parse(text, place):
    """Returns the `Origin` named in a text, or None."""
    match = _NAME.search(text)
    if not match:
        return None
    prefix, size = (match['prefix'] or '').lower(), match['size'].lower()
    return Origin(model_name=_MODEL_PREFIX + _MODEL_NAMES.get(size, size), is_tf=prefix == 'tf_',
                  is_advprop=prefix == 'adv-' or bool(_ADVPROP.search(match['tags'])), place=place)


def find(path, metadata, given_name='', architecture=''):
    """Returns the `Origin` of a weight file, or None if it is unknown.

    The order of precedence is: --timm_name; metadata; file name and config.json; directory names.

    Args:
      path: path of the file.
      metadata: dict of str -> str, the metadata in the file.
      given_name: value of --timm_name, or ''.
      architecture: architecture named in a config.json beside the file, or ''.

    Raises:
      UserError: --timm_name is not the name of a network.
    """
    if given_name:
        origin = parse(given_name, f'--timm_name={given_name}')
        if not origin:
            raise UserError(f'--timm_name={given_name}: not the name of an EfficientNet in timm; '
                            'write it like tf_efficientnet_b0 or tf_efficientnet_b0.ap_in1k.')
        return origin
    folder, name = os.path.split(os.path.abspath(path))
    inside = [parse(value, 'its metadata') for value in metadata.values()]
    beside = [parse(name, 'its name'), parse(architecture, 'the config.json beside it')]
    above = []
    for _ in range(_NUM_FOLDERS):
        folder, name = os.path.split(folder)
        above.append(parse(name, f'the directory name {name}'))
    inside, beside, above = ([each for each in said if each] for said in (inside, beside, above))
    said = inside or beside or above[:1]
    if not said:
        return None
    # If a file and its config.json contradict each other, the stricter answer counts: not tf_.
    first = next((each for each in said if not each.is_tf), said[0])
    return first._replace(is_advprop=any(each.is_advprop for each in inside + beside + above))


def is_googles_advprop(path):
    """Returns whether a path is one of Google's AdvProp archives, from its directory's name."""
    parts = os.path.abspath(path).split(os.sep)
    return any('advprop' in part.lower() for part in parts[-1 - _NUM_FOLDERS:])


def check_tf(path, origin):
    """Raises UserError unless weights in timm's layout are known to be of a tf_ network."""
    if origin is None:
        raise UserError(
            f"{path}: unknown whether its network uses TensorFlow's padding (timm has both "
            'variants, with the same names and shapes); convert it with python -m weights.convert '
            '--timm_name=tf_….')
    if not origin.is_tf:
        raise UserError(
            f'{path}: not a tf_ network according to {origin.place}; its padding and batch-norm '
            "epsilon differ from this program's, which would give wrong results; use the weights "
            f'of {timm_name(origin.model_name)}.')


def file_sha256(path):
    """Returns the SHA-256 of a file in hexadecimal digits.

    Raises:
      UserError: the file name contains a hash, as those of torch files do, that differs.
    """
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        for portion in iter(lambda: file.read(2 ** 20), b''):
            digest.update(portion)
    match = _HASHED_NAME.search(os.path.basename(path))
    if match and not digest.hexdigest().startswith(match[1]):
        raise UserError(f'{path}: corrupt, its SHA-256 begins with {digest.hexdigest()[:8]} and '
                        f'not with {match[1]} as in its name; download it again, or rename it if '
                        'those digits are not a hash.')
    return digest.hexdigest()
