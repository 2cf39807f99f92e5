"""Exports frozen graphs (a GraphDef with weights) and the script that compiles them for Ascend."""
import os
import shlex

import tensorflow.compat.v1 as tf

from common.files import whole_file
from export import inference_graph

CONVERT_SCRIPT = 'convert.sh'
SOC_VERSIONS = ('Ascend310', 'AscendA310', 'Ascend310P3', 'Ascend910', 'Ascend910A',
                'Ascend910B1', 'Ascend910B2', 'Ascend910B3', 'Ascend910B4')
# ATC's two mutually exclusive precision arguments, and their values.
_PRECISION_ARGUMENTS = {
    'precision_mode': ('force_fp16', 'allow_fp32_to_fp16', 'must_keep_origin_dtype',
                       'allow_mix_precision', 'force_fp32', 'cube_fp16in_fp32out'),
    'precision_mode_v2': ('fp16', 'origin', 'mixed_float16')}
PRECISION_MODES = tuple(mode for modes in _PRECISION_ARGUMENTS.values() for mode in modes)
# The batch sizes for which a graph with a free batch size is compiled.
_DYNAMIC_BATCH_SIZES = '1,2,4,8,16'
_AIPP = """aipp_op {{
  aipp_mode: static
  input_format: RGB888_U8
  csc_switch: false
  rbuv_swap_switch: false
  src_image_size_w: {size.width}
  src_image_size_h: {size.height}
}}
"""
_SCRIPT = """#!/usr/bin/env bash
# Compiles the frozen graphs beside this script for {soc_version} with Huawei's ATC.
set -euo pipefail
cd -- "$(dirname -- "${{BASH_SOURCE[0]}}")"
if ! command -v atc > /dev/null; then
  echo 'convert.sh: error: atc is not installed; install the CANN toolkit' \\
    '(Ascend-cann-toolkit) and source its set_env.sh.' >&2
  exit 1
fi
{commands}
"""


def write(trained, path, input_name, batch_size):
    """Writes the network of `trained` as a GraphDef; see `inference_graph.constant_graph`."""
    graph_def, _ = inference_graph.constant_graph(trained, input_name, batch_size)
    with tf.gfile.GFile(path, 'wb') as file:
        file.write(graph_def.SerializeToString())


def write_convert_script(folder, graphs, image_size, soc_version, precision_mode, aipp):
    """Writes the script that compiles frozen graphs to .om files; returns its path.

    The script uses paths relative to itself, so that the directory can be copied to another
    machine.

    Args:
      folder: directory of the graphs.
      graphs: list of (file name, batch size) of graphs with float images. A batch size of None
        gives a command for several batch sizes and another for batch size 1, unless the list has a
        graph of batch size 1.
      image_size: `ImageSize` of the input.
      soc_version: name of the chip as shown by `npu-smi info`.
      precision_mode: one of PRECISION_MODES.
      aipp: whether the compiled models take uint8 images; an AIPP configuration is then written,
        too.
    """
    precision = next(name for name, modes in _PRECISION_ARGUMENTS.items()
                     if precision_mode in modes)
    common = ['--framework=3', '--input_format=NHWC', f'--soc_version={soc_version}',
              '--out_nodes=probabilities:0', '--output_type=FP32',
              f'--{precision}={precision_mode}']
    if aipp:
        name = f'aipp_{image_size}.cfg'
        with whole_file(os.path.join(folder, name)) as file:
            file.write(_AIPP.format(size=image_size))
        common.append(f'--insert_op_conf={name}')
    commands = []
    for name, batch_size in graphs:
        stem = os.path.splitext(name)[0]
        for variant, arguments in _variants(batch_size, image_size).items():
            if batch_size is None and (f'{stem}{variant}.pb', 1) in graphs:
                continue
            words = [f'--model={name}', f'--output={stem}{variant}_{soc_version}', *arguments,
                     *common]
            commands.append(' '.join(['atc', *map(_quoted, words)]))
    path = os.path.join(folder, CONVERT_SCRIPT)
    with whole_file(path) as file:
        file.write(_SCRIPT.format(soc_version=soc_version, commands='\n'.join(commands)))
    if '://' not in path:
        # Everyone with read permission gets execute permission, as the user's umask implies.
        mode = os.stat(path).st_mode
        os.chmod(path, mode | (mode & 0o444) >> 2)
    return path


def _variants(batch_size, image_size):
    """Returns a dict: suffix of the .om file's name -> list of its input arguments for ATC."""
    def shape(size):
        height, width = image_size
        return f'--input_shape={inference_graph.IMAGE}:{size},{height},{width},3'

    if batch_size is not None:
        return {'': [shape(batch_size)]}
    return {'_bs1': [shape(1)],
            '_dynamic': [shape(-1), f'--dynamic_batch_size={_DYNAMIC_BATCH_SIZES}']}


def _quoted(word):
    """Returns an argument `name=value` with its value quoted for the shell."""
    name, value = word.split('=', 1)
    quoted = shlex.quote(value)
    return f'{name}={quoted}' if quoted != value else f'{name}="{value}"'
