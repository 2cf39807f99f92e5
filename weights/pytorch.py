"""Reads and writes `NetworkWeights` as PyTorch files: timm's .safetensors and .pth."""
import os

from absl import logging
import numpy as np

from common import json_files
from common.errors import UserError
import efficientnet_builder
import model_builder_factory
from weights import origin
from weights import safetensors_file
from weights import timm_names
from weights import torch_file
from weights.network_weights import NetworkWeights

SAFETENSORS = '.safetensors'
TORCH_ENDINGS = ('.pth', '.pt', '.bin', '.pth.tar')
# Keys under which training programs save the weights and their moving averages.
_VALUES, _AVERAGES = ('state_dict', 'model'), ('state_dict_ema', 'model_ema', 'ema')
# Prefixes that wrappers of a network add to every name.
_WRAPPERS = ('module.', '_orig_mod.')
_TIMM_STEM = 'conv_stem.weight'
_BACKGROUND_CLASSES = 1001


def read(path, timm_name='', model_name=None):
    """Reads the weights of a file.

    Args:
      path: path of a .safetensors file or a torch file.
      timm_name: value of --timm_name; '' to detect the network.
      model_name: our name of the network, or None.

    Returns:
      a `NetworkWeights`. If there are only moving averages, they become its values.

    Raises:
      UserError: the file is corrupt, of another architecture, or not known to be of a tf_ network.
    """
    if path.endswith(SAFETENSORS):
        tensors, metadata = safetensors_file.read(path)
        kinds = [tensors]
    else:
        kinds, metadata = _of_torch(path, torch_file.read(path))
    kinds = [_cleaned(tensors) for tensors in kinds]
    said = origin.find(path, metadata, timm_name, '' if timm_name else _architecture(path))
    said_name = said and said.model_name
    found_name, num_classes, rows = _network(path, kinds[0], model_name or said_name)
    for expected, place in ((model_name, f'--model_name={model_name}'),
                            (said_name, said and said.place)):
        if expected not in (None, found_name):
            raise UserError(f'{path}: contains {found_name}, not {expected} as in {place}; correct '
                            'that, or name the network with --timm_name.')
    # The port always uses TensorFlow's padding, and all CondConv networks of timm are tf_ networks.
    if rows[0].theirs == _TIMM_STEM and (said or 'condconv' not in found_name):
        origin.check_tf(path, said)
    values, *averages = [_to_ours(path, rows, tensors) for tensors in kinds]
    return NetworkWeights(
        found_name, num_classes, values, averages=averages[0] if averages else None,
        normalization=efficientnet_builder.ADVPROP if said and said.is_advprop else None)


def write(weights, path, enable_ema):
    """Writes a .safetensors file that timm's network of the same name loads with strict=True."""
    values, num_classes = weights.best(enable_ema), weights.num_classes
    rows = timm_names.tensors(weights.model_name, num_classes)
    tensors = {row.theirs: row.to_theirs(values[row.ours]) for row in rows}
    if num_classes == _BACKGROUND_CLASSES:
        logging.info('Class 0, the background class, is dropped: timm has %d classes.',
                     num_classes - 1)
        for row in rows:
            if row.ours.startswith('head/dense/'):
                tensors[row.theirs] = tensors[row.theirs][1:]
    tensors.update({name.replace('running_mean', timm_names.COUNTER): np.zeros([], np.int64)
                    for name in tensors if name.endswith('.running_mean')})
    is_advprop = weights.normalization == efficientnet_builder.ADVPROP
    name = origin.timm_name(weights.model_name, is_advprop)
    safetensors_file.write(path, tensors, {'format': 'pt', 'architecture': name})


def _architecture(path):
    """Returns architecture and weight tag from the config.json of timm's hub, '' if missing."""
    content = json_files.read_if_any(
        os.path.join(os.path.dirname(path), 'config.json'),
        'repair it, or name the network with --timm_name', {
            'architecture': json_files.optional(json_files.TEXT),
            'pretrained_cfg': json_files.optional(json_files.OBJECT)}) or {}
    tag = (content.get('pretrained_cfg') or {}).get('tag')
    return (content.get('architecture') or '') + (f'.{tag}' if tag else '')


def _of_torch(path, saved):
    """Returns ([values, averages], metadata) of a torch file; the list omits missing ones."""
    if not isinstance(saved, dict):
        saved = {}
    if any(isinstance(value, np.ndarray) for value in saved.values()):
        return [saved], {}
    kinds = [next((saved[name] for name in names if isinstance(saved.get(name), dict)), None)
             for names in (_VALUES, _AVERAGES)]
    kinds = [each for each in kinds if each]
    if not kinds:
        raise UserError(f'{path}: contains no state_dict; save one with torch.save.')
    return kinds, {name: saved[name] for name in ('arch', 'architecture')
                   if isinstance(saved.get(name), str)}


def _cleaned(tensors):
    """Returns the tensors without PyTorch's counters and without the prefixes of wrappers."""
    tensors = {str(name): np.asarray(value) for name, value in tensors.items()}
    for wrapper in _WRAPPERS:
        if all(name.startswith(wrapper) for name in tensors):
            tensors = {name[len(wrapper):]: value for name, value in tensors.items()}
    return {name: value for name, value in tensors.items()
            if not name.endswith(f'.{timm_names.COUNTER}')}


def _network(path, tensors, expected):
    """Identifies the network of a file by the names and shapes of its tensors.

    Args:
      path: path of the file, for messages.
      tensors: dict of PyTorch's name -> array.
      expected: name of the network to compare with if none matches, or None for the closest.

    Returns:
      (model name, number of classes, rows of `timm_names`).

    Raises:
      UserError: the file contains no published network; the message names the first difference.
    """
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    style, bias = next(
        ((style, name) for style, name in ((timm_names.TIMM, 'classifier.bias'),
                                           (timm_names.PORT, '_fc.bias'))
         if len(shapes.get(name, ())) == 1), (timm_names.TIMM, None))
    num_classes = shapes[bias][0] if bias else 1000
    common, wanted = {}, {}
    for model_name in model_builder_factory.MODEL_NAMES:
        rows = timm_names.tensors(model_name, num_classes, style)
        wanted[model_name] = {row.theirs: row.their_shape for row in rows}
        if wanted[model_name] == shapes:
            return model_name, num_classes, rows
        common[model_name] = len(wanted[model_name].items() & shapes.items())
    closest = max(common, key=common.get)
    if 2 * common[closest] < len(wanted[closest]):
        raise UserError(f'{path}: contains another architecture; the supported networks are '
                        f"{', '.join(model_builder_factory.MODEL_NAMES)}.")
    closest = expected or closest
    name = next(name for name in (*wanted[closest], *shapes)
                if wanted[closest].get(name) != shapes.get(name))
    there, here = (each.get(name, 'absent') for each in (shapes, wanted[closest]))
    raise UserError(f'{path}: not {closest}: {name} is {_text(there)} instead of {_text(here)}; '
                    'only the published networks can be converted.')


def _text(shape):
    return shape if isinstance(shape, str) else 'x'.join(map(str, shape)) or 'a number'


def _to_ours(path, rows, tensors):
    """Returns variable name -> float32 array; raises UserError unless each row has its tensor."""
    if {name: tensor.shape for name, tensor in tensors.items()} != {
            row.theirs: row.their_shape for row in rows}:
        raise UserError(f'{path}: its moving averages and its weights differ in names or shapes; '
                        'save only one of them.')
    if any(tensor.dtype != np.float32 for tensor in tensors.values()):
        raise UserError(f'{path}: some of its weights are integers; save them as floating-point '
                        'numbers.')
    return {row.ours: row.to_ours(tensors[row.theirs]) for row in rows}
