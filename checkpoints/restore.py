"""Weights of a checkpoint into the variables of a graph: the trained ones or their averages."""
import tensorflow.compat.v1 as tf

from checkpoints import store
from checkpoints import warm_start
from common.errors import UserError

EMA = 'ema'
RAW = 'raw'
_KINDS = {EMA: warm_start.AVERAGED, RAW: warm_start.UNAVERAGED}


def weights_saver(weights, checkpoint):
    """A Saver that restores the graph's variables; with `weights` EMA, from their averages.

    Args:
      weights: EMA or RAW.
      checkpoint: path prefix of what will be restored, or of another one of the same run. It may
        be an ancestor's, see `warm_start.match`.

    Raises:
      UserError: the checkpoint lacks a variable of the graph, or has it in another shape.
    """
    variables = {variable.op.name: variable for variable in tf.global_variables()}
    match = warm_start.match(checkpoint, ema_variables(), [_KINDS[weights]])
    tensors = {**{name: name for name in variables}, **match.loaded}
    lacking = [*match.skipped, *match.missing,
               *sorted(set(tensors.values()) - set(store.shapes(checkpoint)))]
    if lacking:
        raise UserError(f'{checkpoint} does not hold the {weights} weights of this network: '
                        f'{lacking[0]} is not there or has another shape; name another one, or '
                        'check the flags that describe the network.')
    return tf.train.Saver({tensor: variables[name] for name, tensor in tensors.items()})


def has_ema(checkpoint):
    """Whether a checkpoint holds averaged weights."""
    return any(name.endswith(warm_start.AVERAGED)
               for name, _ in tf.train.list_variables(checkpoint))


def check_model(checkpoint, model_name, num_classes):
    """Raises UserError if `checkpoint` is of another model or has another number of classes."""
    shapes = store.shapes(checkpoint)
    classifier = f'{model_name}/head/dense/bias'
    if classifier not in shapes:
        others = sorted({name.split('/')[0] for name in shapes if name.endswith('head/dense/bias')})
        held = ' and '.join(others) or 'no model of this family'
        raise UserError(f'{checkpoint} holds {held}, not {model_name}; change --model_name or the '
                        'folder.')
    if shapes[classifier] != [num_classes]:
        raise UserError(f'{checkpoint} has {shapes[classifier][0]} classes, not {num_classes}; '
                        'change --num_label_classes or the folder.')


def ema_variables():
    """What is averaged: the trainable variables and the moving statistics of batch norm."""
    return tf.trainable_variables() + [
        variable for variable in tf.global_variables()
        if variable.op.name.endswith(('/moving_mean', '/moving_variance'))]
