"""The network as one constant graph: weights in it, batch norm folded into the kernels."""
import numpy as np
import tensorflow.compat.v1 as tf

import imagenet_input

IMAGE_BYTES = 'image_bytes'
IMAGE = 'image'
INPUTS = (IMAGE_BYTES, IMAGE)


def input_tensors(source, batch_size=None):
    """The placeholder of encoded images, and what is made of it: the images of the network.

    Returns:
      string [batch], float32 [batch, size, size, 3]. Both can be fed.
    """
    image_bytes = tf.placeholder(tf.string, [batch_size], name=IMAGE_BYTES)
    images = imagenet_input.serving_input(
        image_bytes, source.image_size, source.builder.resize_method)
    images.set_shape([batch_size, source.image_size, source.image_size, 3])
    return image_bytes, images


def constant_graph(source, input_name=IMAGE, batch_size=None, **overrides):
    """Builds the network for inference and makes constants of its weights.

    Args:
      source: a `Source`.
      input_name: IMAGE for float images, IMAGE_BYTES for encoded ones.
      batch_size: None for any.
      **overrides: more `override_params` of the network: CondConv's formulations.

    Returns:
      GraphDef, and the names of its outputs (`Source.outputs`). The input is called `input_name`,
      each output by its name.
    """
    with tf.Graph().as_default() as graph, tf.Session() as session:
        if input_name == IMAGE_BYTES:
            _, images = input_tensors(source, batch_size)
        else:
            images = tf.placeholder(
                tf.float32, [batch_size, source.image_size, source.image_size, 3], name=IMAGE)
        outputs = source.outputs(images, **overrides)
        source.restore(session)
        fold_batch_norms(session)
        graph_def = tf.graph_util.convert_variables_to_constants(
            session, graph.as_graph_def(), list(outputs))
    return without_batch_norms(graph_def, list(outputs)), list(outputs)


def fold_batch_norms(session):
    """Multiplies the scale of each batch norm into the kernel before it, its mean into beta.

    For convolutions y = K x and batch norm g (y - m) / sqrt(v + e) + b, the kernel becomes
    K g / sqrt(v + e), and b becomes b - m g / sqrt(v + e). A CondConv kernel is a sum of its
    experts, so each of these is scaled. Afterwards batch norm only adds its beta (to a variance
    that lacks e). The variables of the session change, not the graph.
    """
    graph = session.graph
    variables = {variable.op.name: variable for variable in tf.global_variables()}
    values = session.run(variables)
    kernel = None
    # In the order of their making, in which a convolution stands right before its batch norm.
    for name in variables:
        scope, _, leaf = name.rpartition('/')
        if leaf.endswith('kernel'):
            kernel = name
        elif leaf == 'gamma':
            node = next(op for op in graph.get_operations()
                        if op.name.startswith(f'{scope}/') and op.type.startswith(_BATCH_NORM))
            epsilon = node.get_attr('epsilon')
            gamma, beta, mean, variance = (
                values[f'{scope}/{part}'].astype(np.float64)
                for part in ('gamma', 'beta', 'moving_mean', 'moving_variance'))
            scale = gamma / np.sqrt(variance + epsilon)
            # Of every kind of kernel the channels of its output are what runs fastest in memory.
            by_channel = values[kernel].reshape(-1, len(scale))
            folded = {kernel: (by_channel * scale).reshape(values[kernel].shape),
                      f'{scope}/gamma': np.ones_like(scale),
                      f'{scope}/beta': beta - mean * scale,
                      f'{scope}/moving_mean': np.zeros_like(scale),
                      f'{scope}/moving_variance': np.full_like(scale, 1 - epsilon)}
            for variable, value in folded.items():
                variables[variable].load(value, session)


_BATCH_NORM = 'FusedBatchNorm'


def without_batch_norms(graph_def, output_names):
    """Replaces each batch norm that only adds its beta (`fold_batch_norms`) by an addition."""
    for node in graph_def.node:
        if node.op.startswith(_BATCH_NORM):
            inputs, _, beta = node.input[:3]
            node.CopyFrom(tf.NodeDef(name=node.name, op='BiasAdd', input=[inputs, beta],
                                     attr={'T': node.attr['T']}))
    return tf.graph_util.extract_sub_graph(graph_def, output_names)
