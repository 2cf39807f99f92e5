"""Frozen graph: one GraphDef with its weights, and the command that compiles it for Ascend."""
import os
import shlex

import tensorflow.compat.v1 as tf

from export import inference_graph

SOC_VERSIONS = ('Ascend310', 'Ascend910')
# What a model for any batch size is compiled for.
_DYNAMIC_BATCH_SIZES = '1,2,4,8,16'


def write(trained, path, input_name, batch_size):
    """Writes the network of `trained` as a GraphDef; see `inference_graph.constant_graph`."""
    graph_def, _ = inference_graph.constant_graph(trained, input_name, batch_size)
    with tf.gfile.GFile(path, 'wb') as file:
        file.write(graph_def.SerializeToString())


def write_atc_commands(path, image_size, batch_size):
    """Writes beside a frozen graph how Huawei's ATC turns it into .om files; returns the lines.

    Args:
      path: of the frozen graph of float images.
      image_size: pixels.
      batch_size: None for any: then each chip has a command for one image and another for several
        batch sizes.
    """
    stem = os.path.splitext(path)[0]
    size = f'{image_size},{image_size},3'
    fixed = batch_size or 1
    variants = {f'batch{fixed}': f'--input_shape="{inference_graph.IMAGE}:{fixed},{size}"'}
    if batch_size is None:
        variants['dynamic'] = (f'--input_shape="{inference_graph.IMAGE}:-1,{size}" '
                               f'--dynamic_batch_size="{_DYNAMIC_BATCH_SIZES}"')
    commands = [f'atc --model={shlex.quote(path)} --framework=3 {shape} --input_format=NHWC '
                f'--soc_version={soc} --output={shlex.quote(f"{stem}_{soc}_{variant}")}'
                for soc in SOC_VERSIONS for variant, shape in variants.items()]
    with tf.gfile.GFile(f'{stem}.atc.txt', 'w') as file:
        file.write('\n'.join(commands) + '\n')
    return commands
