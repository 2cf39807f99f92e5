"""Which network a file of weights says it is of, and where its weights are from.

Imports no TensorFlow: the programs that run under PyTorch's interpreter use it too.

timm has most networks twice: `tf_efficientnet_b0` pads as TensorFlow does and has its batch-norm
epsilon; `efficientnet_b0` has PyTorch's. Names and shapes of their weights are the same, so only
what stands around the weights can tell.
"""
import hashlib
import os
import re
from typing import NamedTuple

from common.errors import UserError

# Our name -> timm's, both without what all have, of the networks that have another name there.
_TIMM_NAMES = {'condconv-b0-4e': 'cc_b0_4e', 'condconv-b0-8e': 'cc_b0_8e',
               'condconv-b0-8e-depth': 'cc_b1_8e', 'edgetpu-S': 'es', 'edgetpu-M': 'em',
               'edgetpu-L': 'el'}
_MODEL_NAMES = {timm: ours for ours, timm in _TIMM_NAMES.items()}
_MODEL_PREFIX, _TIMM_PREFIX = 'efficientnet-', 'tf_efficientnet_'
_ADVPROP_TAG = '.ap_in1k'

# A network's name, as timm, its repositories and its torch files have it, with what follows.
_NAME = re.compile(
    r'(?<![a-z0-9])(?P<prefix>tf_|adv-)?efficientnet[_-]'
    r'(?P<size>cc_b0_[48]e|cc_b1_8e|b[0-8]|l2|lite[0-4]|e[sml])(?![a-z0-9])(?P<tags>[\w.-]*)',
    re.IGNORECASE)
_ADVPROP = re.compile(r'[._]ap(?![a-z0-9])', re.IGNORECASE)
# torch.hub's way: the name ends in the first digits of the file's SHA-256.
_HASHED_NAME = re.compile(r'-([0-9a-f]{8})\.pth$')
# Folders above a file that may bear a name: .../models--timm--NAME/snapshots/HASH/model.safetensors
_NUM_FOLDERS = 3


class Origin(NamedTuple):
    """What is said of a network.

    Attributes:
      model_name: our name of it.
      is_tf: whether it is one of TensorFlow's.
      is_advprop: whether it was trained with AdvProp, whose images are normalized in another way.
      place: what says so.
    """
    model_name: str
    is_tf: bool
    is_advprop: bool
    place: str


def timm_name(model_name, is_advprop=False):
    """Returns timm's name of one of our networks: that of Google's weights."""
    size = model_name[len(_MODEL_PREFIX):]
    return _TIMM_PREFIX + _TIMM_NAMES.get(size, size) + _ADVPROP_TAG * is_advprop


def parse(text, place):
    """Returns the `Origin` that a text names, or None."""
    match = _NAME.search(text)
    if not match:
        return None
    prefix, size = (match['prefix'] or '').lower(), match['size'].lower()
    return Origin(model_name=_MODEL_PREFIX + _MODEL_NAMES.get(size, size), is_tf=prefix == 'tf_',
                  is_advprop=prefix == 'adv-' or bool(_ADVPROP.search(match['tags'])), place=place)


def find(path, metadata, given_name='', architecture=''):
    """Returns the `Origin` of a file, or None if nothing says it.

    Args:
      path: of the file.
      metadata: dict of str -> str that the file has inside.
      given_name: of --timm_name.
      architecture: what a config.json beside the file names.

    Raises:
      UserError: --timm_name is no name of a network.
    """
    if given_name:
        origin = parse(given_name, f'--timm_name={given_name}')
        if not origin:
            raise UserError(f'--timm_name={given_name}: not a name of an EfficientNet of timm; '
                            'write it like tf_efficientnet_b0 or tf_efficientnet_b0.ap_in1k.')
        return origin
    folder, name = os.path.split(os.path.abspath(path))
    inside = [parse(value, 'its metadata') for value in metadata.values()]
    beside = [parse(name, 'its name'), parse(architecture, 'the config.json beside it')]
    above = []
    for _ in range(_NUM_FOLDERS):
        folder, name = os.path.split(folder)
        above.append(parse(name, f'the name of the folder {name}'))
    inside, beside, above = ([each for each in said if each] for said in (inside, beside, above))
    said = inside or beside or above[:1]
    if not said:
        return None
    # Where a file and its config.json contradict each other, it is not known to be TensorFlow's.
    first = next((each for each in said if not each.is_tf), said[0])
    return first._replace(is_advprop=any(each.is_advprop for each in inside + beside + above))


def is_googles_advprop(path):
    """Whether a path is one of Google's AdvProp archives, which lie in a folder of that name."""
    parts = os.path.abspath(path).split(os.sep)
    return any('advprop' in part.lower() for part in parts[-1 - _NUM_FOLDERS:])


def check_tf(path, origin):
    """Raises UserError unless weights that are in timm's layout are known to be TensorFlow's."""
    if origin is None:
        raise UserError(
            f'{path}: nothing says whether its network pads as TensorFlow does (timm has both, '
            'with the same names and shapes); name it with --timm_name=tf_…, as '
            'python -m weights.convert takes it.')
    if not origin.is_tf:
        raise UserError(
            f'{path}: {origin.place} says that this is no tf_ network; those have other padding '
            "and another batch-norm epsilon than this program's and would give wrong results; "
            f'use the weights of {timm_name(origin.model_name)}.')


def file_sha256(path):
    """Returns the SHA-256 of a file, as hexadecimal digits.

    Raises:
      UserError: its name ends in other digits, as those of torch files do.
    """
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        for portion in iter(lambda: file.read(2 ** 20), b''):
            digest.update(portion)
    match = _HASHED_NAME.search(os.path.basename(path))
    if match and not digest.hexdigest().startswith(match[1]):
        raise UserError(f'{path}: damaged, its SHA-256 begins with {digest.hexdigest()[:8]} and '
                        f'not with {match[1]} as its name says; download it again, or rename it '
                        'if those digits are no hash.')
    return digest.hexdigest()
