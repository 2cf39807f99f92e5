"""Warm start: which tensor of a checkpoint belongs to which variable, under other names too.

Names are those of the reference implementations, with two exceptions. The outermost scope, the
model's name, may differ. CondConv kernels are matched by their block and their order in it, because
the reference implementations number them through the whole network and put them below 'model/': by
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

# What follows a variable's name in a checkpoint.
AVERAGED = '/ExponentialMovingAverage'
UNAVERAGED = ''

REPORT_FILE = 'init_checkpoint_report.json'
_MAX_LOGGED_NAMES = 8

# Every network of the family has it; what stands before it is the network's scope.
_FIRST_KERNEL = 'stem/conv2d/kernel'
_CONDCONV_KERNEL = re.compile(
    r'(model/)?(?P<block>blocks_\d+)/(?P<layer>(depthwise_)?cond_conv2d)(_(?P<number>\d+))?'
    r'/(depthwise_)?condconv_kernel')


@dataclasses.dataclass(frozen=True)
class Match:
    """How the tensors of a checkpoint and the variables of a network correspond.

    Attributes:
      checkpoint: path prefix.
      scopes: the network's outermost scope in the checkpoint and in the graph, each '' or ending
        in '/'.
      loaded: variable's name -> tensor's name, of all that have the same shape.
      renamed: those of `loaded` whose name differs by more than the scope.
      skipped: variable's name -> shapes in the checkpoint and in the graph, which differ.
      missing: names of the variables that the checkpoint has nothing for.
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
      variables: those of the network: weights and batch statistics.
      kinds: AVERAGED, UNAVERAGED or both; of a weight that is there in both the first is taken.

    Returns:
      a `Match`.
    """
    return match_shapes(checkpoint, {variable.op.name: variable.shape.as_list()
                                     for variable in variables}, kinds)


def match_shapes(checkpoint, ours, kinds=(AVERAGED, UNAVERAGED)):
    """As `match`, of variables that are in no graph: `ours` is name -> shape, a list."""
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
    """The scopes of all networks among `names`."""
    return {name[:-len(_FIRST_KERNEL)] for name in names
            if name == _FIRST_KERNEL or name.endswith('/' + _FIRST_KERNEL)}


def _condconv_names(ours, our_scope, theirs, their_scope):
    """Our name -> their name of the kernels of each block that has as many here as there."""
    names = {}
    their_kernels = _condconv_kernels(theirs, their_scope)
    for layer, kernels in _condconv_kernels(ours, our_scope).items():
        if len(kernels) == len(their_kernels[layer]):
            names.update(zip(kernels, their_kernels[layer]))
    return names


def _condconv_kernels(names, scope):
    """(block, kind of layer) -> names of its kernels in the order of their numbers."""
    kernels = collections.defaultdict(list)
    for name in names:
        parts = name.startswith(scope) and _CONDCONV_KERNEL.fullmatch(name[len(scope):])
        if parts:
            kernels[parts['block'], parts['layer']].append((int(parts['number'] or 0), name))
    for numbered in kernels.values():
        numbered[:] = [name for _, name in sorted(numbered)]
    return kernels


def initialize(checkpoint, variables, report_dir, frozen=()):
    """Makes `variables` start with the weights of a checkpoint: the averaged ones if it has them.

    Initialisers are replaced, nothing is read yet: so it is the same on every runtime, and a
    session that restores a checkpoint of its own never looks. What the checkpoint lacks, or has in
    another shape, keeps its initialiser. How it went is logged and written to REPORT_FILE.

    Args:
      checkpoint: path prefix of a readable checkpoint.
      variables: those of the network: weights and batch statistics.
      report_dir: where the report goes.
      frozen: names of the variables, from below the network's scope, that will not be trained.

    Raises:
      UserError: not one tensor fits, or none fits a variable that is frozen.
    """
    matched = match(checkpoint, variables)
    if not matched.loaded:
        raise UserError(f'{checkpoint} has no weight in common with this network; check '
                        '--init_checkpoint and --model_name.')
    random = [name for name in (*matched.skipped, *matched.missing)
              if name.split('/', 1)[-1] in frozen]
    if random:
        raise UserError(f'--freeze would keep {random[0]} random, which {checkpoint} lacks or has '
                        'in another shape; leave its part out, or check --init_checkpoint.')
    targets = {matched.loaded[variable.op.name]: variable for variable in variables
               if variable.op.name in matched.loaded}
    # A session that is made later reads it.
    links = contextlib.ExitStack()
    atexit.register(links.close)
    tf.train.init_from_checkpoint(links.enter_context(literal(checkpoint)), targets)
    _log(matched)
    with whole_file(os.path.join(report_dir, REPORT_FILE)) as file:
        json.dump(dataclasses.asdict(matched), file, indent=2)


def _log(matched):
    num_averaged = sum(tensor.endswith(AVERAGED) for tensor in matched.loaded.values())
    logging.info('Initial weights from %s: %d loaded (%d of them moving averages; %d renamed), '
                 '%d of another shape, %d not there.', matched.checkpoint, len(matched.loaded),
                 num_averaged, len(matched.renamed), len(matched.skipped), len(matched.missing))
    theirs, ours = matched.scopes
    if theirs != ours:
        logging.info('  The checkpoint says %r where this network says %r.', theirs, ours)
    _log_names('Renamed', [
        f'{name[len(ours):]} <- {tensor}' for name, tensor in matched.renamed.items()])
    _log_names('Of another shape, so new', [
        f'{name[len(ours):]} ({_times(there)} there, {_times(here)} here)'
        for name, (there, here) in matched.skipped.items()])
    _log_names('Not there, so new', [name[len(ours):] for name in matched.missing])


def _times(shape):
    return 'x'.join(map(str, shape))


def _log_names(heading, names):
    if names:
        more = len(names) - _MAX_LOGGED_NAMES
        logging.info('  %s: %s%s', heading, ', '.join(names[:_MAX_LOGGED_NAMES]),
                     f' and {more} more, see {REPORT_FILE}' if more > 0 else '')
