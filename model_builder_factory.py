"""Looks up models by name, and builds models for use in other TensorFlow graphs."""
import dataclasses
import os

import tensorflow.compat.v1 as tf

from checkpoints import restore
from checkpoints import store
from common import json_files
from common.errors import UserError
import efficientnet_builder

MODEL_NAMES = tuple(efficientnet_builder.VARIANTS)


def get_model_builder(model_name, normalization=None):
    """Returns the `efficientnet_builder.Family` that builds a model.

    Args:
      model_name: one of `MODEL_NAMES`.
      normalization: a key of `efficientnet_builder.NORMALIZATIONS`; None for the family's own.

    Raises:
      ValueError: the name is unknown; the message lists the valid names.
    """
    family = efficientnet_builder.FAMILIES[efficientnet_builder.get_variant(model_name).family]
    if normalization:
        mean, stddev = efficientnet_builder.NORMALIZATIONS[normalization]
        family = dataclasses.replace(family, MEAN_RGB=mean, STDDEV_RGB=stddev)
    return family


def get_model_input_size(model_name):
    """Returns the side of a model's square input images in pixels.

    Raises:
      ValueError: the name is unknown.
    """
    return efficientnet_builder.get_variant(model_name).image_size


def create_model(model_name, num_classes=None, checkpoint=None, override_params=None):
    """Returns a `ReusableModel` for use in another TensorFlow graph.

    Args:
      model_name: one of `MODEL_NAMES`.
      num_classes: number of classes; 0 for a model without a classifier, which returns the pooled
        features. Default: the number of the checkpoint, else the model's own.
      checkpoint: path prefix, or directory of a run, whose multipliers and normalization are then
        used; None for initial values. `weights.conversion.as_checkpoint` converts other files.
      override_params: see `efficientnet_builder.get_model_params`; data_format is always
        channels_last.

    Raises:
      ValueError: a name, key or value is unknown; the message lists the valid ones.
      UserError: the checkpoint is unreadable, or of another model or number of classes.
    """
    efficientnet_builder.get_variant(model_name)
    of_run = {}
    if checkpoint:
        checkpoint = store.find(checkpoint, 'checkpoint')
        store.verify(checkpoint)
        num_classes = _num_classes(checkpoint, model_name, num_classes)
        of_run = _settings_of_run(checkpoint)
    keys = {field.name for field in dataclasses.fields(efficientnet_builder.GlobalParams)}
    overrides = {**{key: value for key, value in of_run.items() if key in keys},
                 'num_classes': num_classes, **(override_params or {}),
                 **efficientnet_builder.PORTABLE}
    efficientnet_builder.get_model_params(model_name, overrides)
    return ReusableModel(model_name, get_model_builder(model_name, of_run.get('normalization')),
                         overrides, checkpoint)


class ReusableModel:
    """A network that can be called several times in a graph and shares its variables.

    The first call in a graph creates the variables in the current variable scope; later calls
    reuse them.

    Attributes:
      endpoints: name -> tensor of the last call, see `efficientnet_model.Model`.
      variables: list of weights and batch statistics in the graph of the last call.
    """

    def __init__(self, model_name, family, override_params, checkpoint=None):
        """For the arguments see `create_model`; `family` is an `efficientnet_builder.Family`."""
        self._name = model_name
        self._family = family
        self._overrides = override_params
        self._checkpoint = checkpoint
        self._kind, = restore.weights_to_use(checkpoint, [restore.EMA]) if checkpoint else [None]
        self._graph = self._scope = self._saver = None
        self.endpoints, self.variables = {}, []

    def __call__(self, images, training=False):
        """Builds the network on images.

        Args:
          images: [batch, height, width, 3], RGB in [0, 255], of any number type.
          training: whether dropout, stochastic depth and batch statistics are on. The updates of
            the moving statistics are then added to tf.GraphKeys.UPDATE_OPS.

        Returns:
          logits, float32 [batch, classes].

        Raises:
          ValueError: the variable scope already contains another model of this name.
          UserError: a variable is missing in the checkpoint or has another shape.
        """
        graph = tf.get_default_graph()
        is_new = graph is not self._graph
        scope = tf.get_variable_scope() if is_new else self._scope
        if is_new and not scope.reuse and self._variables_below(scope):
            raise ValueError(f'{self._name}: the variable scope already contains a model of this '
                             'name; call this one in another tf.variable_scope.')
        with tf.variable_scope(scope, reuse=None if is_new else True, auxiliary_name_scope=False):
            logits, self.endpoints = self._family.build_model(
                self._family.normalize(images), self._name, training, self._overrides)
        if is_new:
            self._graph, self._scope = graph, scope
            self.variables = self._variables_below(scope)
            # The saver is built now, because a tf.train.Scaffold restores after finalizing the
            # graph.
            self._saver = self._checkpoint and restore.weights_saver(
                self._kind, self._checkpoint, self.variables)
        return logits

    def restore(self, session):
        """Restores the variables from the checkpoint, or initializes them if there is none.

        Moving averages of the weights are used if the checkpoint contains them. The graph is not
        changed, so that `init_fn` of a `tf.train.Scaffold` can call this function.

        Args:
          session: session of the graph of the last call. Other variables are not changed.

        Raises:
          ValueError: the model was not called in the graph of this session.
          UserError: the checkpoint contains weights that are not finite.
        """
        if self._graph is not session.graph:
            raise ValueError(f'{self._name}: not called in the graph of this session; call it on '
                             'images before restore.')
        if self._saver:
            self._saver.restore(session, self._checkpoint)
        else:
            session.run([variable.initializer for variable in self.variables])

    def _variables_below(self, scope):
        network = f'{scope.name}/{self._name}/'.lstrip('/')
        return [variable for variable in tf.global_variables()
                if variable.op.name.startswith(network)]


def _num_classes(checkpoint, model_name, num_classes):
    """Returns the given number of classes, else that of the checkpoint."""
    held = restore.classifiers(checkpoint)
    if model_name not in held:
        raise UserError(f'{checkpoint}: contains {" and ".join(sorted(held)) or "no known model"}, '
                        f'not {model_name}; create that model, or choose another checkpoint.')
    if num_classes not in (None, 0, held[model_name]):
        raise UserError(f'{checkpoint}: has {held[model_name]} classes, not {num_classes}; leave '
                        'num_classes out, or set it to 0 and add your own classifier.')
    return held[model_name] if num_classes is None else num_classes


def _settings_of_run(checkpoint):
    """Returns setting -> value from the config.json of a checkpoint's run; {} if there is none."""
    for folder in store.config_folders(os.path.dirname(checkpoint) or '.'):
        saved = json_files.read_if_any(
            os.path.join(folder, store.CONFIG_FILE), 'restore it from a copy',
            {'model': json_files.OBJECT, 'optimization': json_files.OBJECT})
        if saved:
            return {**saved['optimization'], **saved['model']}
    return {}
