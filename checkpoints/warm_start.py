"""Warm start: matches the tensors of a checkpoint with the variables of a network.

Names are those of the reference implementations, with two exceptions. The outermost scope, the
model's name, may differ. CondConv kernels are matched by block and order within the block, because
the reference implementations number them through the whole network and put them below 'model/'. By
name alone, an expansion kernel could be taken for a projection of the same size.
"""
import atexit
import collections
import contextlib
import dataclasses
import json
import os
import re
from typing import Dict
from typing import List
from typing import Tuple

from absl import logging
import tensorflow.compat.v1 as tf

from checkpoints import store
from common.errors import UserError
from common.files import literal
from common.files import whole_file

# Suffixes of a variable's name in a checkpoint.
AVERAGED = '/ExponentialMovingAverage'
UNAVERAGED = ''

REPORT_FILE = 'init_checkpoint_report.json'
_MAX_LOGGED_NAMES = 8

# Every network of the family has this variable, below the network's scope.
_FIRST_KERNEL = 'stem/conv2d/kernel'
_CONDCONV_KERNEL = re.compile(
    r'(model/)?(?P<block>blocks_\d+)/(?P<layer>(depthwise_)?cond_conv2d)(_(?P<number>\d+))?'
    r'/(depthwise_)?condconv_kernel')


@dataclasses.dataclass(frozen=True)
class Match:
    """The correspondence between the tensors of a checkpoint and the variables of a network.

    Attributes:
      checkpoint: path prefix.
      scopes: the network's outermost scope in the checkpoint and in the graph, each '' or ending
        in '/'.
      loaded: variable name -> tensor name, where both have the same shape.
      renamed: entries of `loaded` whose names differ by more than the scope.
      skipped: variable name -> (shape in the checkpoint, shape in the graph), where they differ.
      missing: names of the variables that the checkpoint lacks.
    """
    checkpoint: str
    scopes: Tuple[str, str]
    loaded: Dict[str, str]
    renamed: Dict[str, str]
    skipped: Dict[str, Tuple[List[int], List[int]]]
    missing: List[str]


def match(checkpoint, variables, kinds=(AVERAGED, UNAVERAGED)):
    """Finds the tensors of `variables` in a checkpoint.

    Args:
      checkpoint: path prefix of a readable checkpoint.
      variables: weights and batch statistics of the network.
      kinds: AVERAGED, UNAVERAGED or both; if a weight exists in both, the first one is used.

    Returns:
      a `Match`.
    """
    return match_shapes(checkpoint, {variable.op.name: variable.shape.as_list()
                                     for variable in variables}, kinds)


def match_shapes(checkpoint, ours, kinds=(AVERAGED, UNAVERAGED)):
    """Does the same as `match` for a dict `ours` of variable name -> shape (a list)."""
    shapes = store.shapes(checkpoint)
    tensors = {name[:len(name) - len(kind)]: name
               for kind in reversed(kinds) for name in shapes if name.endswith(kind)}
    our_scope = min(_scopes(ours), default='')
    scopes = _scopes(tensors)
    their_scope = our_scope if our_scope in scopes else min(scopes, default=our_scope)

    expected = {name: their_scope + name[len(our_scope):] for name in ours}
    names = {**expected, **_condconv_names(ours, our_scope, tensors, their_scope)}
    found = {name: tensors[names[name]] for name in ours if names[name] in tensors}
    loaded = {name: tensor for name, tensor in found.items() if shapes[tensor] == ours[name]}
    return Match(
        checkpoint=checkpoint,
        scopes=(their_scope, our_scope),
        loaded=loaded,
        renamed={name: tensor for name, tensor in loaded.items() if names[name] != expected[name]},
        skipped={name: (shapes[tensor], ours[name])
                 for name, tensor in found.items() if name not in loaded},
        missing=[name for name in ours if name not in found])


def _scopes(names):
    """Returns the scopes of all networks among `names`."""
    return {name[:-len(_FIRST_KERNEL)] for name in names
            if name == _FIRST_KERNEL or name.endswith('/' + _FIRST_KERNEL)}


def _condconv_names(ours, our_scope, theirs, their_scope):
    """Returns our name -> their name of the kernels, for blocks with equally many kernels."""
    names = {}
    their_kernels = _condconv_kernels(theirs, their_scope)
    for layer, kernels in _condconv_kernels(ours, our_scope).items():
        if len(kernels) == len(their_kernels[layer]):
            names.update(zip(kernels, their_kernels[layer]))
    return names


def _condconv_kernels(names, scope):
    """Returns (block, kind of layer) -> names of its kernels, ordered by number."""
    kernels = collections.defaultdict(list)
    for name in names:
        parts = name.startswith(scope) and _CONDCONV_KERNEL.fullmatch(name[len(scope):])
        if parts:
            kernels[parts['block'], parts['layer']].append((int(parts['number'] or 0), name))
    for numbered in kernels.values():
        numbered[:] = [name for _, name in sorted(numbered)]
    return kernels


def initialize(checkpoint, variables, report_dir, frozen=()):
    """Initializes `variables` with the weights of a checkpoint, averaged ones if it has them.

    Replaces initializers and reads nothing yet, so that all runtimes behave the same, and a session
    that restores its own checkpoint does not read this one. Variables that the checkpoint lacks, or
    has in another shape, keep their initializer. The result is logged and written to REPORT_FILE.

    Args:
      checkpoint: path prefix of a readable checkpoint.
      variables: weights and batch statistics of the network.
      report_dir: directory of the report.
      frozen: names of the variables that will not be trained, without the network's scope.

    Raises:
      UserError: no tensor fits, or none fits a frozen variable.
    """
    matched = match(checkpoint, variables)
    if not matched.loaded:
        raise UserError(f'{checkpoint}: no weight in common with this network; check '
                        '--init_checkpoint and --model_name.')
    random = [name for name in (*matched.skipped, *matched.missing)
              if name.split('/', 1)[-1] in frozen]
    if random:
        raise UserError(f'--freeze: {random[0]} would stay random, because {checkpoint} lacks it '
                        'or has it in another shape; do not freeze this part, or check '
                        '--init_checkpoint.')
    targets = {matched.loaded[variable.op.name]: variable for variable in variables
               if variable.op.name in matched.loaded}
    # A later session reads the checkpoint, so that its links must outlive this function.
    links = contextlib.ExitStack()
    atexit.register(links.close)
    tf.train.init_from_checkpoint(links.enter_context(literal(checkpoint)), targets)
    _log(matched)
    with whole_file(os.path.join(report_dir, REPORT_FILE)) as file:
        json.dump(dataclasses.asdict(matched), file, indent=2)


def _log(matched):
    num_averaged = sum(tensor.endswith(AVERAGED) for tensor in matched.loaded.values())
    logging.info('Initial weights from %s: loaded %d variables (%d of them moving averages, %d '
                 'renamed); %d re-initialized (shape differs); %d missing.', matched.checkpoint,
                 len(matched.loaded), num_averaged, len(matched.renamed), len(matched.skipped),
                 len(matched.missing))
    theirs, ours = matched.scopes
    if theirs != ours:
        logging.info('  The scope %r of the checkpoint is %r here.', theirs, ours)
    _log_names('Renamed', [
        f'{name[len(ours):]} <- {tensor}' for name, tensor in matched.renamed.items()])
    _log_names('Re-initialized', [
        f'{name[len(ours):]} ({_times(there)} in the checkpoint, {_times(here)} here)'
        for name, (there, here) in matched.skipped.items()])
    _log_names('Missing', [name[len(ours):] for name in matched.missing])


def _times(shape):
    return 'x'.join(map(str, shape))


def _log_names(heading, names):
    if names:
        more = len(names) - _MAX_LOGGED_NAMES
        logging.info('  %s: %s%s', heading, ', '.join(names[:_MAX_LOGGED_NAMES]),
                     f' and {more} more, see {REPORT_FILE}' if more > 0 else '')
