"""What an input of many images costs: `python -m benchmarks.input_cost --json=FILE`.

Measures training input without augmentation, of the images of `benchmarks.input_pipeline`:

- on one core and on two, in turn: images per second, memory, threads, open files;
- the part of it that one thread does, the reader, by itself;
- from an object store with latency (`benchmarks.object_store`), for several values of
  --read_ahead_mb: the time that a consumer waits which takes as many images as one of eight
  accelerators, and how much is read.

`table` extrapolates to a server of many cores.
"""
import contextlib
import multiprocessing
import os
import statistics
import tempfile
import time

from absl import flags
import tensorflow.compat.v1 as tf

from benchmarks import input_pipeline
from benchmarks import object_store
from benchmarks import outputs
from benchmarks import protocol
from common import app
from common.errors import UserError
import imagenet_input

CORES = 1, 2
WARM_UP_BATCHES = 20
BATCHES_PER_ROUND = 16
FILL_SECS = 2.0    # for the buffer that is read ahead
# Shards as long as ImageNet's: 1,200 records each.
STORE_REPEATS = 12
READ_AHEAD_MB = 0, 16, 64, 256
# Milliseconds before each answer; share of answers that take longer, and how many seconds longer.
STORES = (5, 0, 0), (20, 0, 0), (100, 0, 0), (20, 0.002, 0.5)
# Eight Ascend 910 take 6,067 images a second (MindCV, EfficientNet-B0).
DEMAND_IMAGES_PER_SEC = 6067
SERVER_RANKS, SERVER_CORES = 8, 192
# Of a thread that decodes: the picture, its crop as floats, and an image that is ready.
THREAD_MB = (input_pipeline.IMAGE_WIDTH * input_pipeline.IMAGE_HEIGHT * 3
             + (4 + 1) * 3 * input_pipeline.IMAGE_SIZE ** 2) / 1e6


def define_flags():
    flags.DEFINE_string('json', None, 'File to write the figures to.')
    flags.DEFINE_integer('rounds', 15, 'Times that one core and two take turns.', lower_bound=1)
    flags.DEFINE_float('store_secs', 30.0, 'Seconds to read with each setting from each store.',
                       lower_bound=0.1, upper_bound=3600)


@contextlib.contextmanager
def _session(dataset):
    """Context of a session; gives the function that fetches one element."""
    with tf.Session() as session:
        iterator = tf.data.make_initializable_iterator(dataset)
        # Runs the operations only: fetching the values would copy them once more.
        element = [tensor.op for tensor in tf.nest.flatten(iterator.get_next())]
        session.run(iterator.initializer)
        yield lambda: session.run(element)


def _read_only(images_input):
    """Returns a dataset that reads and shuffles the records of a batch, and does nothing more."""
    return images_input.records().map(
        tf.autograph.experimental.do_not_convert(lambda _: 0)).batch(input_pipeline.BATCH_SIZE)


def serve_cores(connection, data_dir, num_cores, is_reader):
    """Runs the input on some of the cores, in a process of its own.

    For each number of batches that it receives, it fetches them and sends (images per second,
    milliseconds of one core per image). Receiving 0 ends it, with what the process has as the last
    message.
    """
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:num_cores])
    tf.logging.set_verbosity(tf.logging.ERROR)
    base_mb = protocol.memory_mb('VmRSS', 'self')
    images_input = input_pipeline.make_input(data_dir, is_training=True)
    with tf.Graph().as_default():
        dataset = _read_only(images_input) if is_reader else images_input.dataset()
        with _session(dataset) as fetch:
            while True:
                num_batches = connection.recv()
                if not num_batches:
                    break
                start, cpu_start = time.monotonic(), time.process_time()
                for _ in range(num_batches):
                    fetch()
                num_images = num_batches * input_pipeline.BATCH_SIZE
                connection.send((num_images / (time.monotonic() - start),
                                 (time.process_time() - cpu_start) * 1000 / num_images))
            connection.send({
                'base_rss_mb': round(base_mb, 1),
                'peak_rss_mb': round(protocol.peak_rss_mb(), 1),
                'threads': len(os.listdir('/proc/self/task')),
                'open_files': len(os.listdir('/proc/self/fd'))})


@contextlib.contextmanager
def _started(target, *args):
    """Context of a process that runs `target(connection, *args)`; gives the other end."""
    context = multiprocessing.get_context('spawn')
    connection, other_end = context.Pipe()
    process = context.Process(target=target, args=(other_end, *args), daemon=True)
    process.start()
    other_end.close()
    yield connection
    process.join()


def measure_cores(data_dir, rounds):
    """Returns the figures of each of `CORES`, and how many images the reader alone has a second."""
    cases = [(count, False) for count in CORES] + [(CORES[-1], True)]
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(_started(serve_cores, data_dir, *case))
                       for case in cases]
        measured = [[] for _ in cases]
        for number in range(rounds + 1):
            for connection, rates in zip(connections, measured):
                # Batches that were prefetched during the turn of another do not count.
                for num_batches in (2 * imagenet_input.PREFETCHED_BATCHES if number
                                    else WARM_UP_BATCHES, BATCHES_PER_ROUND):
                    connection.send(num_batches)
                    rate = connection.recv()
                if number:
                    rates.append(rate)
        figures = {}
        for (count, is_reader), connection, rates in zip(cases, connections, measured):
            connection.send(0)
            images_per_sec, core_ms = map(statistics.median, zip(*rates))
            used = {'images_per_sec': round(images_per_sec, 1),
                    'core_ms_per_image': round(core_ms, 3), **connection.recv()}
            figures['reader' if is_reader else f'cores_{count}'] = used
    return figures


def serve_store(connection, images_per_sec):
    """Takes images from the object store at a pace, in a process of its own.

    For each (--read_ahead_mb, seconds) that it receives, it sends a word when it begins, and at the
    end (batches, share of the time that it waited, longest wait in seconds). None ends it.
    """
    tf.logging.set_verbosity(tf.logging.ERROR)
    for read_ahead_mb, secs in iter(connection.recv, None):
        images_input = imagenet_input.ImageNetInput(
            object_store.URL, is_training=True, image_size=input_pipeline.IMAGE_SIZE,
            batch_size=input_pipeline.BATCH_SIZE, read_ahead_mb=read_ahead_mb)
        with tf.Graph().as_default(), _session(_read_only(images_input)) as fetch:
            fetch()
            time.sleep(FILL_SECS)
            connection.send('begin')
            waits, start = [], time.monotonic()
            while time.monotonic() - start < secs:
                begin = time.monotonic()
                fetch()
                waits.append(time.monotonic() - begin)
                time.sleep(input_pipeline.BATCH_SIZE / images_per_sec)
            connection.send(
                (len(waits), sum(waits) / (time.monotonic() - start), max(waits)))


def measure_stores(data_dir, secs):
    """Yields the figures of each store of `STORES` with each value of the flag."""
    with object_store.serving(data_dir, STORE_REPEATS) as store, _started(
            serve_store, DEMAND_IMAGES_PER_SEC / SERVER_RANKS) as child:
        for latency_ms, store.slow_share, store.slow_secs in STORES:
            store.latency_secs = latency_ms / 1000
            for read_ahead_mb in READ_AHEAD_MB:
                child.send((read_ahead_mb, secs))
                child.recv()
                num_requests, num_bytes = store.num_requests, store.num_bytes
                num_batches, stall, longest_secs = child.recv()
                num_images = num_batches * input_pipeline.BATCH_SIZE
                yield {
                    'latency_ms': latency_ms, 'slow_share': store.slow_share,
                    'slow_secs': store.slow_secs, 'read_ahead_mb': read_ahead_mb,
                    'stall': round(stall, 3), 'longest_wait_secs': round(longest_secs, 2),
                    'requests_per_image': round(
                        (store.num_requests - num_requests) / num_images, 3),
                    'kilobytes_per_image': round(
                        (store.num_bytes - num_bytes) / num_images / 1000, 1)}
        child.send(None)


def main(argv):
    """Prints the figures and the table that they lead to."""
    del argv
    options = flags.FLAGS
    outputs.check_json(options.json)
    if len(os.sched_getaffinity(0)) < max(CORES):
        raise UserError(f'{max(CORES)} cores are compared with one; this machine has one.')
    with tempfile.TemporaryDirectory(prefix='input-cost-') as data_dir:
        input_pipeline.write_data(data_dir)
        figures = measure_cores(data_dir, options.rounds)
        figures['kilobytes_per_image'] = round(imagenet_input.ImageNetInput(
            data_dir, True, input_pipeline.IMAGE_SIZE, 1).mean_record_bytes() / 1000, 1)
        print(figures, flush=True)
        figures['stores'] = []
        for row in measure_stores(data_dir, options.store_secs):
            print(row, flush=True)
            figures['stores'].append(row)
    print(table(figures), store_table(figures), sep='\n\n')
    outputs.write_json(options.json, figures)


def table(figures):
    """The figures of one core and two, and on paper those of a server, as a table in Markdown."""
    rows = ['| training, no augmentation, 224 pixels | images/s | memory, MB | threads that decode '
            '| open files | read from storage, MB/s |', '|---' + '|--:' * 5 + '|']
    kilobytes = figures['kilobytes_per_image']
    for count in CORES:
        used = figures[f'cores_{count}']
        rate = used['images_per_sec']
        rows.append(_row(f"{count} core{'s' * (count > 1)}, measured", rate, used['peak_rss_mb'],
                         count, used['open_files'], kilobytes))
    cores = SERVER_CORES // SERVER_RANKS
    rate = min(cores * 1000 / used['core_ms_per_image'], figures['reader']['images_per_sec'])
    memory_mb = used['peak_rss_mb'] + (cores - CORES[-1]) * THREAD_MB
    files = used['open_files']
    for ranks in (1, SERVER_RANKS):
        rows.append(_row(
            f"{cores * ranks} cores, {ranks} rank{'s' * (ranks > 1)}, at most", ranks * rate,
            ranks * memory_mb, cores * ranks, ranks * files, kilobytes))
    rows.append(_row(
        f'{SERVER_CORES} cores, {SERVER_RANKS} ranks, as eight Ascend 910 take images',
        DEMAND_IMAGES_PER_SEC, SERVER_RANKS * memory_mb, SERVER_CORES, SERVER_RANKS * files,
        kilobytes))
    return '\n'.join(rows)


def _row(name, images_per_sec, memory_mb, threads, files, kilobytes):
    return (f'| {name} | {images_per_sec:,.0f} | {memory_mb:,.0f} | {threads} | {files} | '
            f'{images_per_sec * kilobytes / 1000:,.0f} |')


def store_table(figures):
    """The figures of the object store, a column for each value of the flag."""
    rows = ['| answers of the store after | ' + ' | '.join(
        f'--read_ahead_mb={megabytes}' for megabytes in READ_AHEAD_MB) + ' |',
            '|---' + '|--:' * len(READ_AHEAD_MB) + '|']
    for latency_ms, share, secs in STORES:
        name = f'{latency_ms} ms' + (f', {share:.1%} of them {secs:g} s later' if share else '')
        cells = [f"{row['stall']:.0%} (longest {row['longest_wait_secs']:.2f} s)"
                 for row in figures['stores'] if (
                     row['latency_ms'], row['slow_share'], row['slow_secs']) == (
                         latency_ms, share, secs)]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return '\n'.join(rows)


if __name__ == '__main__':
    define_flags()
    app.run(main)
