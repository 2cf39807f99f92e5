"""Restores the weights of a checkpoint, trained or averaged, into the variables of a graph."""
import re

from absl import logging
import tensorflow.compat.v1 as tf

from checkpoints import store
from checkpoints import warm_start
from common.errors import UserError
from common.errors import first_line

EMA = 'ema'
RAW = 'raw'
_KINDS = {EMA: warm_start.AVERAGED, RAW: warm_start.UNAVERAGED}
_IN_WORDS = {EMA: 'averaged', RAW: 'trained'}
# Every network of the family has this variable.
_CLASSIFIER = {kind: re.compile(f'(?P<model>[^/]+)/head/dense/bias{ending}')
               for kind, ending in _KINDS.items()}


class _WeightsSaver(store.Saver):
    """A Saver that refuses non-finite weights, and reports a checkpoint that was removed.

    Args:
      variables: name of a tensor -> variable.
    """

    def __init__(self, variables):
        super().__init__(variables)
        self._names = list(variables)

    def restore(self, sess, save_path):
        bad = store.not_finite(save_path, self._names)
        if bad:
            raise UserError(f'{save_path}: {len(bad)} of {len(self._names)} weights are not '
                            f'finite, {bad[0]} first; name an earlier checkpoint.')
        try:
            super().restore(sess, save_path)
        except (tf.errors.DataLossError, tf.errors.NotFoundError, ValueError) as error:
            raise store.unreadable(save_path, f'cannot be restored ({first_line(error)}); name '
                                   'another one') from error


def weights_saver(weights, checkpoint, variables=None):
    """Returns a Saver that restores the graph's variables; with EMA, from their averages.

    Args:
      weights: EMA or RAW.
      checkpoint: path prefix of the checkpoint to restore, or of another one of the same run. It
        may be one of a reference implementation (see `warm_start.match`).
      variables: variables to restore; None for all.

    Raises:
      UserError: the checkpoint lacks a variable of the graph, or has it in another shape. Restoring
        raises UserError for weights that are not finite.
    """
    variables = {variable.op.name: variable for variable in variables or tf.global_variables()}
    match = warm_start.match(
        checkpoint, [variable for variable in ema_variables() if variable.op.name in variables],
        [_KINDS[weights]])
    tensors = {**{name: name for name in variables}, **match.loaded}
    lacking = [*match.skipped, *match.missing,
               *sorted(set(tensors.values()) - set(store.shapes(checkpoint)))]
    if lacking:
        raise UserError(f'{checkpoint}: not the {weights} weights of this network ({lacking[0]} is '
                        'missing or has another shape); name another checkpoint, or check the '
                        'flags that describe the network.')
    return _WeightsSaver({tensor: variables[name] for name, tensor in tensors.items()})


def has_ema(checkpoint):
    """Returns whether a checkpoint has averaged weights."""
    return EMA in held_weights(checkpoint)


def held_weights(checkpoint):
    """Returns which of RAW and EMA a checkpoint has, in that order."""
    names = list(store.shapes(checkpoint))
    return [kind for kind in (RAW, EMA) if any(map(_CLASSIFIER[kind].fullmatch, names))]


def weights_to_use(checkpoint, wanted):
    """Returns `wanted`, or the weights that a checkpoint has instead, which is logged.

    Args:
      checkpoint: path prefix of a checkpoint of a network.
      wanted: list of RAW and EMA.
    """
    held = held_weights(checkpoint)
    lacking = [_IN_WORDS[kind] for kind in wanted if kind not in held]
    used = [kind for kind in wanted if kind in held] or held
    if lacking:
        logging.info('%s has no %s weights; using the %s ones.', checkpoint,
                     ' and no '.join(lacking), ' and '.join(_IN_WORDS[kind] for kind in used))
    return used


def classifiers(checkpoint):
    """Returns model name -> number of classes for the networks in a checkpoint."""
    return {match['model']: shape[0] for name, shape in store.shapes(checkpoint).items()
            for match in (pattern.fullmatch(name) for pattern in _CLASSIFIER.values()) if match}


def only_model(checkpoint, model_names):
    """Returns which of `model_names` a checkpoint has; UserError if several or none."""
    models = sorted(set(classifiers(checkpoint)) & set(model_names))
    if len(models) != 1:
        raise UserError(f'{checkpoint}: holds {" and ".join(models) or "no model of this family"}, '
                        'and no config.json names the model; give --model_name.')
    return models[0]


def check_model(checkpoint, model_name, num_classes=None):
    """Returns the number of classes that a checkpoint has.

    Raises:
      UserError: it is of another model or has another number of classes.
    """
    found = classifiers(checkpoint)
    if model_name not in found:
        held = ' and '.join(sorted(found)) or 'no model of this family'
        raise UserError(f'--model_name={model_name}: {checkpoint} holds {held}, not {model_name}; '
                        'change --model_name or the directory.')
    if num_classes not in (None, found[model_name]):
        raise UserError(f'--num_label_classes={num_classes}: {checkpoint} has {found[model_name]} '
                        f'classes, not {num_classes}; change --num_label_classes or the directory.')
    return found[model_name]


def ema_variables():
    """Returns the averaged variables: trainable ones and the moving statistics of batch norm."""
    return tf.trainable_variables() + [
        variable for variable in tf.global_variables()
        if variable.op.name.endswith(('/moving_mean', '/moving_variance'))]
