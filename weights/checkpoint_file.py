"""TensorFlow checkpoints to `NetworkWeights`, and back: Google's, Huawei's and this program's."""
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
    """Reads a checkpoint.

    Args:
      path: of an archive such as Google's efficientnet-b0.tar.gz; or a folder, or a path prefix.
      flag: that names it.
      timm_name, model_name: what is given of the network; '' and None to find it out.

    Returns:
      a `NetworkWeights`; averages become the values where there is nothing else.

    Raises:
      UserError: the checkpoint is damaged, or not of a published network; or an archive would
        write outside its folder.
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
    """Writes a checkpoint as the newest one of a folder, under the names that Google's have.

    Args:
      folder: that exists.
      name: of the checkpoint.
      weights: a `NetworkWeights`.
      averages: variable's name -> array of the moving averages, or None to write none.
    """
    tensors = {tf.GraphKeys.GLOBAL_STEP: np.int64(weights.step)}
    for values, kind in ((weights.values, warm_start.UNAVERAGED),
                         (averages or {}, warm_start.AVERAGED)):
        tensors.update({f'{weights.model_name}/{key}{kind}': value
                        for key, value in values.items()})
    with tf.Graph().as_default(), tf.Session() as session:
        # Not constants: a graph holds up to 2 GB.
        fed = {tf.placeholder(value.dtype, value.shape): value for value in tensors.values()}
        session.run(tf.raw_ops.SaveV2(
            prefix=os.path.join(folder, name), tensor_names=list(tensors),
            shape_and_slices=[''] * len(tensors), tensors=list(fed)), fed)
    store.name_in_state(folder, [name])


def _of_archive(path, folder):
    """Extracts the only checkpoint of an archive; returns its path prefix."""
    with _readable_archive(path), tarfile.open(path) as archive:
        members = [member for member in archive if not member.isdir()]
        for member in members:
            # '..' would lead outside of the folder, and so would a link.
            if not member.isfile() or os.path.isabs(member.name) or (
                    '..' in member.name.split('/')):
                raise UserError(f'{path}: its member {member.name} would be written outside of the '
                                'folder it is extracted to; nothing was, get another copy.')
        prefixes = [member.name[:-len('.index')] for member in members
                    if member.name.endswith('.index')]
        if len(prefixes) != 1:
            raise UserError(f'{path}: it holds {len(prefixes)} checkpoints, and not one; extract '
                            'it and name one.')
        wanted = [member for member in members if member.name.startswith(f'{prefixes[0]}.')]
        if sum(member.size for member in wanted) > shutil.disk_usage(folder).free:
            raise UserError(f'{path}: {folder} has no room to extract it to; make room, or name '
                            'another folder by TMPDIR.')
        for member in wanted:
            name = os.path.join(folder, os.path.basename(member.name))
            with archive.extractfile(member) as source, open(name, 'wb') as target:
                shutil.copyfileobj(source, target)
        # gzip finds out at its end whether the archive is whole.
        while archive.fileobj.read(2 ** 20):
            pass
    checkpoint = os.path.join(folder, os.path.basename(prefixes[0]))
    try:
        store.verify(checkpoint)
    except UserError as error:
        raise UserError(f'{path}: its checkpoint is damaged; download it again.') from error
    return checkpoint


@contextlib.contextmanager
def _readable_archive(path):
    """A UserError in place of what a damaged archive raises."""
    try:
        yield
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise UserError(f'{path}: not a readable archive ({first_line(error)}); download it '
                        'again.') from error


def _check_published(checkpoint, config):
    """UserError unless a run's network is a published one, as other programs have it too."""
    for group, name in (('model', 'width_coefficient'), ('model', 'depth_coefficient'),
                        ('optimization', 'batch_norm_epsilon')):
        value = getattr(getattr(config, group), name)
        if value is not None:
            raise UserError(f'{checkpoint}: its network has --{name}={value}; only the published '
                            'networks can be converted.')


def _num_classes(path, checkpoint):
    sizes = {shape[0] for name, shape in store.shapes(checkpoint).items() if shape and any(
        f'/{name}'.endswith(f'/{_CLASSIFIER_BIAS}{kind}')
        for kind in (warm_start.AVERAGED, warm_start.UNAVERAGED))}
    if len(sizes) != 1:
        raise UserError(f'{path}: it holds {len(sizes)} classifiers, and not one; name the '
                        'checkpoint of one network.')
    return sizes.pop()


def _values(path, checkpoint, model_name, num_classes):
    """Returns (values, averages or None) of `NetworkWeights`."""
    shapes = {f'{model_name}/{row.ours}': list(row.our_shape)
              for row in timm_names.tensors(model_name, num_classes)}
    averaged = warm_start.match_shapes(checkpoint, shapes)
    raw = warm_start.match_shapes(checkpoint, shapes, [warm_start.UNAVERAGED])
    lacking = [*averaged.skipped, *averaged.missing]
    if lacking:
        raise UserError(f'{path}: it is not {model_name}, whose {lacking[0]} is not there or has '
                        'another shape; check --model_name.')
    reader = tf.train.load_checkpoint(checkpoint)

    def read_all(match):
        return {name[len(model_name) + 1:]: reader.get_tensor(tensor).astype(np.float32)
                for name, tensor in match.loaded.items()}

    has_averages = any(tensor.endswith(warm_start.AVERAGED) for tensor in averaged.loaded.values())
    if has_averages and not raw.skipped and not raw.missing:
        return read_all(raw), read_all(averaged)
    return read_all(averaged), None
