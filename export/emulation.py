"""Runs a frozen graph with TensorFlow instead of an Ascend device, with the same output files."""
import json
import os
import time

import numpy as np
import tensorflow.compat.v1 as tf

from common import json_files
from common.errors import UserError
from common.errors import first_line
from common.files import whole_file
from common.image_sizes import ImageSize
from common.paths import check_input_file
from export import inference_graph
from export import loading
from export import offline_inputs
from export import offline_outputs

RECORD = 'emulation.json'
_TIMES = {'ais_bench': '%Y_%m_%d-%H_%M_%S', 'msame': '%Y%m%d_%H%M%S'}
# Smaller constants, such as shapes, depend on the batch size and are left out of the checksum.
_LEAST_WEIGHTS = 64


class FrozenGraph:
    """Reads the properties of a frozen graph.

    Attributes:
      batch_size: int, or None for any.
      image_size: `ImageSize` of the input.
      num_classes: number of classes.
      checksum: checksum of the weights, independent of the batch size.
    """

    def __init__(self, path):
        check_input_file(path, '--frozen_graph')
        try:
            with open(path, 'rb') as file:
                graph_def = tf.GraphDef.FromString(file.read())
            with tf.Graph().as_default() as graph:
                tf.import_graph_def(graph_def, name='')
            images = graph.get_tensor_by_name(f'{inference_graph.IMAGE}:0')
            self.batch_size, height, width, _ = images.shape.as_list()
            self.image_size = ImageSize(height, width)
            self.num_classes = graph.get_tensor_by_name('probabilities:0').shape.as_list()[-1]
        except Exception as error:  # Corrupt files raise errors of many types.
            raise UserError(f'--frozen_graph={path}: cannot be loaded ({first_line(error)}); name '
                            'a .pb file of export_model.py.') from error
        weights = {node.name: node.attr['value'].tensor for node in graph_def.node
                   if node.op == 'Const'
                   and len(node.attr['value'].tensor.tensor_content) >= 4 * _LEAST_WEIGHTS}
        self.checksum = offline_inputs.checksum(b''.join(
            name.encode() + weights[name].tensor_content for name in sorted(weights)))


def run(path, inputs, outputs, layout):
    """Writes the outputs of a frozen graph for prepared inputs; returns their directory.

    Args:
      path: path of the frozen graph.
      inputs: directory of the inputs.
      outputs: directory in which a time-stamped directory is created.
      layout: program whose output files are written, a key of `offline_outputs.ENDINGS`.

    Raises:
      UserError: the graph does not fit the inputs.
    """
    manifest = offline_inputs.read_manifest(inputs)
    graph = FrozenGraph(path)
    image_size = ImageSize(*manifest['shape'][1:3])
    for what, own, prepared in (('image size', graph.image_size, image_size),
                                ('number of classes', graph.num_classes, manifest['num_classes'])):
        if own != prepared:
            raise UserError(f'--frozen_graph={path}: the {what} is {own}, but the inputs have '
                            f'{prepared}; prepare them with this model.')
    if layout == 'msame' and graph.batch_size not in (None, manifest['batch_size']):
        raise UserError(f'--frozen_graph={path}: takes {graph.batch_size} images, but each file in '
                        f'{inputs} has {manifest["batch_size"]}, which msame cannot split; use '
                        f'--layout=ais_bench, or prepare with --batch_size={graph.batch_size}.')
    folder = _new_folder(outputs, _TIMES[layout])
    with loading.load(path) as model:
        for name, images in offline_inputs.read(inputs, manifest):
            probabilities = model.predict(images.astype(np.float32))['probabilities']
            stem = os.path.splitext(name)[0]
            output = os.path.join(folder, f'{stem}{offline_outputs.ENDINGS[layout]}.bin')
            with whole_file(output, 'wb') as file:
                file.write(probabilities.astype(np.float32).tobytes())
    with whole_file(os.path.join(folder, RECORD)) as file:
        json.dump({'model_checksum': graph.checksum}, file)
    return folder


def check(folder, manifest):
    """Raises UserError if `folder` has emulated outputs of a model other than the manifest's."""
    record = json_files.read_if_any(os.path.join(folder, RECORD), 'run emulate again',
                                    {'model_checksum': json_files.TEXT})
    expected = manifest.get('model_checksum')
    if record and expected and record['model_checksum'] != expected:
        raise UserError(f'{folder}: emulated with other weights than those of the inputs; run '
                        'emulate with the frozen graph that prepare was given, or prepare again.')


def _new_folder(parent, form):
    while True:
        folder = os.path.join(parent, time.strftime(form))
        try:
            os.makedirs(folder)
            return folder
        except FileExistsError:
            time.sleep(0.1)
