"""Shards -> records: which process reads what, and several files at a time."""
import numpy as np
import tensorflow.compat.v1 as tf

INTERLEAVED_FILES = 16             # open at the same time
READ_BUFFER_BYTES = 1 << 20        # per open file
READ_AHEAD_RECORDS = 8             # per open file

_without_autograph = tf.autograph.experimental.do_not_convert


def deal(paths, rank, num_ranks):
    """Deals shards to the ranks: whole files while they go round, the rest of them by record.

    Args:
        paths: list of str.
        rank, num_ranks: int.

    Returns:
        (paths, num_parts, parts): arrays of str, int64, int64. This rank reads record
        parts[i], parts[i] + num_parts[i], parts[i] + 2 * num_parts[i] ... of paths[i].
    """
    num_whole = len(paths) // num_ranks * num_ranks
    dealt = [(path, 1, 0) for path in paths[rank:num_whole:num_ranks]]
    # Each of the rest begins with another rank, for whoever begins may get a record more.
    dealt += [(path, num_ranks, (rank + i) % num_ranks)
              for i, path in enumerate(paths[num_whole:])]
    dealt_paths, num_parts, parts = zip(*dealt)
    return np.array(dealt_paths), np.array(num_parts, np.int64), np.array(parts, np.int64)


def read(files, skipped):
    """Reads several shards at a time.

    Args:
        files: tf.data.Dataset of (path, number of parts, part), see `deal`.
        skipped: dict, path -> indices of the records that are left out. With any, whatever cannot
            be read is left out as well, in all shards.

    Returns:
        tf.data.Dataset of string scalars, serialised records.
    """
    def read_file(path, num_parts, part):
        return tf.data.TFRecordDataset(path, buffer_size=READ_BUFFER_BYTES).shard(num_parts, part)

    def read_good_part(path, num_parts, part):
        records = tf.data.TFRecordDataset(path, buffer_size=READ_BUFFER_BYTES)
        records = records.apply(tf.data.experimental.ignore_errors()).enumerate()
        is_skipped = tf.equal(path, list(skipped))
        # A row for each shard, filled up with what is no index.
        length = max(map(len, skipped.values()))
        indices = np.array([values + (-1,) * (length - len(values)) for values in skipped.values()])
        indices = tf.reshape(tf.boolean_mask(indices, is_skipped), [-1])
        return records.shard(num_parts, part).filter(_without_autograph(
            lambda index, _: tf.reduce_all(tf.not_equal(index, indices)))).map(
                _without_autograph(lambda _, record: record))

    read_one = read_good_part if skipped else read_file
    # A thread a file by way of prefetch. In TensorFlow 1.15.5 interleave's own num_parallel_calls
    # crashes the process, more often than not, when a session is closed while it reads.
    return files.interleave(
        _without_autograph(lambda *args: read_one(*args).prefetch(READ_AHEAD_RECORDS)),
        cycle_length=INTERLEAVED_FILES)
