"""Reads and writes `NetworkWeights` as TensorFlow checkpoints: Google's, Huawei's, this program's.
"""
import contextlib
import os
import shutil
import tarfile
import tempfile

import numpy as np
import tensorflow.compat.v1 as tf

from checkpoints import restore
from checkpoints import store
from checkpoints import warm_start
from common.errors import UserError
from common.errors import first_line
from config import run_config
import efficientnet_builder
import model_builder_factory
from weights import origin
from weights import timm_names
from weights.network_weights import UNKNOWN_STEP
from weights.network_weights import NetworkWeights

ARCHIVE_ENDINGS = ('.tar.gz', '.tgz', '.tar')
_CLASSIFIER_BIAS = 'head/dense/bias'


def read(path, flag, timm_name='', model_name=None):
    """Reads the weights of a checkpoint.

    Args:
      path: path of an archive such as Google's efficientnet-b0.tar.gz, a directory, or a path
        prefix.
      flag: name of the flag that `path` was given with.
      timm_name, model_name: timm's and our name of the network; '' and None to detect it.

    Returns:
      a `NetworkWeights`. If there are only moving averages, they become its values.

    Raises:
      UserError: the checkpoint is corrupt or not of a published network, or a member of the archive
        would be extracted outside the directory.
    """
    said = origin.find(path, {}, timm_name) if timm_name else None
    with contextlib.ExitStack() as stack:
        if path.endswith(ARCHIVE_ENDINGS):
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            checkpoint, config = _of_archive(path, folder), None
        else:
            checkpoint = store.find(path, flag)
            store.verify(checkpoint)
            config = run_config.of_checkpoint(checkpoint)
        model_name = model_name or (said and said.model_name) or (
            config.model.model_name if config else
            restore.only_model(checkpoint, model_builder_factory.MODEL_NAMES))
        if config:
            _check_published(checkpoint, config)
        num_classes = _num_classes(path, checkpoint)
        values, averages = _values(path, checkpoint, model_name, num_classes)
        normalization = config.model.normalization if config else None
        if said and said.is_advprop or not config and origin.is_googles_advprop(path):
            normalization = efficientnet_builder.ADVPROP
        return NetworkWeights(
            model_name, num_classes, values, averages, normalization,
            class_names=config.class_names if config else (),
            step=store.step_of(checkpoint) or UNKNOWN_STEP)


def write(folder, name, weights, averages):
    """Writes a checkpoint with Google's variable names, as the newest one of a directory.

    Args:
      folder: an existing directory.
      name: name of the checkpoint.
      weights: a `NetworkWeights`.
      averages: dict of variable name -> array, the moving averages; None to write none.
    """
    tensors = {tf.GraphKeys.GLOBAL_STEP: np.int64(weights.step)}
    for values, kind in ((weights.values, warm_start.UNAVERAGED),
                         (averages or {}, warm_start.AVERAGED)):
        tensors.update({f'{weights.model_name}/{key}{kind}': value
                        for key, value in values.items()})
    with tf.Graph().as_default(), tf.Session() as session:
        # The weights are fed, because constants count against the 2 GB limit of a graph.
        fed = {tf.placeholder(value.dtype, value.shape): value for value in tensors.values()}
        session.run(tf.raw_ops.SaveV2(
            prefix=os.path.join(folder, name), tensor_names=list(tensors),
            shape_and_slices=[''] * len(tensors), tensors=list(fed)), fed)
    store.name_in_state(folder, [name])


def _of_archive(path, folder):
    """Extracts the only checkpoint of an archive to `folder`; returns its path prefix."""
    with _readable_archive(path), tarfile.open(path) as archive:
        members = [member for member in archive if not member.isdir()]
        for member in members:
            # '..' and links would lead outside the directory.
            if not member.isfile() or os.path.isabs(member.name) or (
                    '..' in member.name.split('/')):
                raise UserError(f'{path}: its member {member.name} would be written outside the '
                                'target directory, so nothing was extracted; get another copy.')
        prefixes = [member.name[:-len('.index')] for member in members
                    if member.name.endswith('.index')]
        if len(prefixes) != 1:
            raise UserError(f'{path}: contains {len(prefixes)} checkpoints instead of one; extract '
                            'it and name one of them.')
        wanted = [member for member in members if member.name.startswith(f'{prefixes[0]}.')]
        if sum(member.size for member in wanted) > shutil.disk_usage(folder).free:
            raise UserError(f'{path}: no space left in {folder} to extract it; make room, or set '
                            'TMPDIR to another directory.')
        for member in wanted:
            name = os.path.join(folder, os.path.basename(member.name))
            with archive.extractfile(member) as source, open(name, 'wb') as target:
                shutil.copyfileobj(source, target)
        # gzip verifies its checksum only at the end of the file.
        while archive.fileobj.read(2 ** 20):
            pass
    checkpoint = os.path.join(folder, os.path.basename(prefixes[0]))
    try:
        store.verify(checkpoint)
    except UserError as error:
        raise UserError(f'{path}: its checkpoint is corrupt; download it again.') from error
    return checkpoint


@contextlib.contextmanager
def _readable_archive(path):
    """Converts the errors that a corrupt archive raises to UserError."""
    try:
        yield
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise UserError(f'{path}: not a readable archive ({first_line(error)}); download it '
                        'again.') from error


def _check_published(checkpoint, config):
    """Raises UserError unless a run's network is a published one, which other programs know."""
    for group, name in (('model', 'width_coefficient'), ('model', 'depth_coefficient'),
                        ('optimization', 'batch_norm_epsilon')):
        value = getattr(getattr(config, group), name)
        if value is not None:
            raise UserError(f'{checkpoint}: its network was trained with --{name}={value}; only '
                            'the published networks can be converted.')


def _num_classes(path, checkpoint):
    sizes = {shape[0] for name, shape in store.shapes(checkpoint).items() if shape and any(
        f'/{name}'.endswith(f'/{_CLASSIFIER_BIAS}{kind}')
        for kind in (warm_start.AVERAGED, warm_start.UNAVERAGED))}
    if len(sizes) != 1:
        raise UserError(f'{path}: contains {len(sizes)} classifiers instead of one; name the '
                        'checkpoint of a single network.')
    return sizes.pop()


def _values(path, checkpoint, model_name, num_classes):
    """Returns (values, averages or None) of `NetworkWeights`."""
    shapes = {f'{model_name}/{row.ours}': list(row.our_shape)
              for row in timm_names.tensors(model_name, num_classes)}
    averaged = warm_start.match_shapes(checkpoint, shapes)
    raw = warm_start.match_shapes(checkpoint, shapes, [warm_start.UNAVERAGED])
    lacking = [*averaged.skipped, *averaged.missing]
    if lacking:
        raise UserError(f'{path}: not a checkpoint of {model_name}: {lacking[0]} is missing or has '
                        'another shape; check --model_name.')
    reader = tf.train.load_checkpoint(checkpoint)

    def read_all(match):
        return {name[len(model_name) + 1:]: reader.get_tensor(tensor).astype(np.float32)
                for name, tensor in match.loaded.items()}

    has_averages = any(tensor.endswith(warm_start.AVERAGED) for tensor in averaged.loaded.values())
    if has_averages and not raw.skipped and not raw.missing:
        return read_all(raw), read_all(averaged)
    return read_all(averaged), None
