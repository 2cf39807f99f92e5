"""Model name -> family and input size; the list of all models; models for graphs of your own."""
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
    """Returns the `efficientnet_builder.Family` of a model, which builds it.

    Args:
      model_name: one of `MODEL_NAMES`.
      normalization: one of `efficientnet_builder.NORMALIZATIONS`; None for the family's own.

    Raises:
      ValueError: an unknown name, with the list of those that exist.
    """
    family = efficientnet_builder.FAMILIES[efficientnet_builder.get_variant(model_name).family]
    if normalization:
        mean, stddev = efficientnet_builder.NORMALIZATIONS[normalization]
        family = dataclasses.replace(family, MEAN_RGB=mean, STDDEV_RGB=stddev)
    return family


def get_model_input_size(model_name):
    """Returns the side in pixels of the square images of a model; raises ValueError as above."""
    return efficientnet_builder.get_variant(model_name).image_size


def create_model(model_name, num_classes=None, checkpoint=None, override_params=None):
    """Returns a `ReusableModel`, for use in a TensorFlow graph of your own.

    Args:
      model_name: one of `MODEL_NAMES`.
      num_classes: classes of the classifier; 0 for a model without one, whose output is the pooled
        features. Default: the checkpoint's, else the model's own.
      checkpoint: path prefix, or folder of a run, whose multipliers and normalization then hold;
        None for initial values. `weights.conversion.as_checkpoint` makes one of other files.
      override_params: see `efficientnet_builder.get_model_params`; data_format is always
        channels_last.

    Raises:
      ValueError: an unknown name, key or value, with the list of those that exist.
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
    """A network that can be called several times in a graph, and has one set of variables.

    The first call in a graph creates them, below the variable scope that it is made in; a later
    call uses them again.

    Attributes:
      endpoints: name -> tensor of the last call, see `efficientnet_model.Model`.
      variables: weights and batch statistics in the graph of the last call.
    """

    def __init__(self, model_name, family, override_params, checkpoint=None):
        """See `create_model`; `family` is an `efficientnet_builder.Family`."""
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
            the moving statistics are then in tf.GraphKeys.UPDATE_OPS.

        Returns:
          logits, float32 [batch, classes].

        Raises:
          ValueError: another model of this name is in the same variable scope.
          UserError: the checkpoint lacks a variable, or has it in another shape.
        """
        graph = tf.get_default_graph()
        is_new = graph is not self._graph
        scope = tf.get_variable_scope() if is_new else self._scope
        if is_new and not scope.reuse and self._variables_below(scope):
            raise ValueError(f'{self._name}: the graph already holds a model of this name here; '
                             'call this one inside a tf.variable_scope of its own.')
        with tf.variable_scope(scope, reuse=None if is_new else True, auxiliary_name_scope=False):
            logits, self.endpoints = self._family.build_model(
                self._family.normalize(images), self._name, training, self._overrides)
        if is_new:
            self._graph, self._scope = graph, scope
            self.variables = self._variables_below(scope)
            # Now, because a tf.train.Scaffold restores when the graph is finalized.
            self._saver = self._checkpoint and restore.weights_saver(
                self._kind, self._checkpoint, self.variables)
        return logits

    def restore(self, session):
        """Gives the variables the checkpoint's weights, averaged if it has them; else initial ones.

        The graph stays as it is, and may be finalized: `init_fn` of a `tf.train.Scaffold` can call
        this function.

        Args:
          session: of the graph of the last call. Its other variables stay as they are.

        Raises:
          ValueError: the model was not called yet, and has no variables.
          UserError: the checkpoint holds weights that are not finite.
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
    """Returns the number of classes that is given, else that of the checkpoint."""
    held = restore.classifiers(checkpoint)
    if model_name not in held:
        raise UserError(f'{checkpoint}: holds {" and ".join(sorted(held)) or "no known model"}, '
                        f'not {model_name}; create that model, or choose another checkpoint.')
    if num_classes not in (None, 0, held[model_name]):
        raise UserError(f'{checkpoint}: has {held[model_name]} classes, not {num_classes}; leave '
                        'num_classes out, or set it to 0 and add a classifier of your own.')
    return held[model_name] if num_classes is None else num_classes


def _settings_of_run(checkpoint):
    """Returns setting -> value of the network of a checkpoint's run; {} if no run is known."""
    folder = os.path.dirname(checkpoint)
    folders = [folder] + [os.path.dirname(folder)] * (
        os.path.basename(folder) == store.ARCHIVE_DIR)
    for folder in folders:
        saved = json_files.read_if_any(
            os.path.join(folder, store.CONFIG_FILE), 'restore it from a copy',
            {'model': json_files.OBJECT, 'optimization': json_files.OBJECT})
        if saved:
            return {**saved['optimization'], **saved['model']}
    return {}
