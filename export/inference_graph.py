"""Builds the network as a constant graph, with batch norm folded into the kernels."""
import os

import numpy as np
import tensorflow.compat.v1 as tf

import imagenet_input

IMAGE_BYTES = 'image_bytes'
IMAGE = 'image'
INPUTS = (IMAGE_BYTES, IMAGE)
# Prefix of the op types of batch norm.
_BATCH_NORM = 'FusedBatchNorm'


def input_tensors(trained, batch_size=None):
    """Creates the placeholder of encoded images and decodes it into the network's input.

    Args:
      trained: a `TrainedModel`.
      batch_size: int, or None for any.

    Returns:
      (string [batch], float32 [batch, height, width, 3]). Both tensors can be fed.
    """
    image_bytes = tf.placeholder(tf.string, [batch_size], name=IMAGE_BYTES)
    images = imagenet_input.serving_input(
        image_bytes, trained.image_size, trained.builder.resize_method)
    images.set_shape([batch_size, *trained.image_shape])
    return image_bytes, images


def constant_graph(trained, input_name=IMAGE, batch_size=None, **overrides):
    """Builds the network for inference, with its weights as constants.

    Args:
      trained: a `TrainedModel`.
      input_name: IMAGE for float images, IMAGE_BYTES for encoded ones.
      batch_size: int, or None for any.
      **overrides: more `override_params` of the network, such as `condconv_implementation`.

    Returns:
      (GraphDef, list of the names of its outputs, see `TrainedModel.outputs`). The input op is
      named `input_name`; each output op has the name of its output.
    """
    with tf.Graph().as_default() as graph, tf.Session() as session:
        if input_name == IMAGE_BYTES:
            _, images = input_tensors(trained, batch_size)
            # This op gives the images a name, and their shape survives in the frozen graph.
            images = tf.placeholder_with_default(images, images.shape, name=IMAGE)
        else:
            images = tf.placeholder(tf.float32, [batch_size, *trained.image_shape], name=IMAGE)
        outputs = trained.outputs(images, **overrides)
        trained.restore(session)
        fold_batch_norms(session)
        graph_def = tf.graph_util.convert_variables_to_constants(
            session, graph.as_graph_def(), list(outputs))
    return without_batch_norms(graph_def, list(outputs)), list(outputs)


def fold_batch_norms(session):
    """Folds each batch norm into the kernel before it; changes variables, not the graph.

    For a convolution y = K x and batch norm g (y - m) / sqrt(v + e) + b, the kernel becomes
    K g / sqrt(v + e) and b becomes b - m g / sqrt(v + e). A CondConv kernel is a weighted sum of
    experts, so each expert is scaled. Afterwards batch norm only adds b, because g = 1, m = 0 and
    v = 1 - e.

    Args:
      session: tf.Session whose variables are updated.
    """
    variables = {variable.op.name: variable for variable in tf.global_variables()}
    values = session.run(variables)
    epsilons = {os.path.dirname(op.name): op.get_attr('epsilon')
                for op in session.graph.get_operations() if op.type.startswith(_BATCH_NORM)}
    folded, kernel = {}, None
    # The variables are in creation order, in which each kernel directly precedes its batch norm.
    for name in variables:
        scope, leaf = os.path.split(name)
        if leaf.endswith('kernel'):
            kernel = name
        elif leaf == 'gamma':
            gamma, beta, mean, variance = (
                values[f'{scope}/{part}'].astype(np.float64)
                for part in ('gamma', 'beta', 'moving_mean', 'moving_variance'))
            scale = gamma / np.sqrt(variance + epsilons[scope])
            # In every kernel layout, the output channels are the fastest-varying in memory.
            by_channel = values[kernel].reshape(-1, len(scale))
            folded[kernel] = (by_channel * scale).reshape(values[kernel].shape)
            folded[f'{scope}/gamma'] = np.ones_like(scale)
            folded[f'{scope}/beta'] = beta - mean * scale
            folded[f'{scope}/moving_mean'] = np.zeros_like(scale)
            folded[f'{scope}/moving_variance'] = np.full_like(scale, 1 - epsilons[scope])
    # One session.run for all variables; one for each takes half a minute.
    initializers = {name: variables[name].initializer for name in folded}
    session.run(initializers, {initializers[name].inputs[1]: folded[name] for name in folded})


def without_batch_norms(graph_def, output_names):
    """Returns the graph with each batch norm that `fold_batch_norms` changed as a BiasAdd."""
    for node in graph_def.node:
        if node.op.startswith(_BATCH_NORM):
            inputs, _, beta = node.input[:3]
            node.CopyFrom(tf.NodeDef(name=node.name, op='BiasAdd', input=[inputs, beta],
                                     attr={'T': node.attr['T']}))
    return tf.graph_util.extract_sub_graph(graph_def, output_names)
