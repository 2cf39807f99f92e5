"""Measures the resources of the input pipeline: `python -m benchmarks.input_cost --json=FILE`.

Measures training input without augmentation, on the images of `benchmarks.input_data`:

- on one core and on two cores, in turn: images per second, memory and open files;
- the reader alone, the part that runs in one thread;
- from an object store with latency (`benchmarks.object_store`), for several values of
  --read_ahead_mb: the bytes read, and the time that a consumer waits if it consumes images at the
  rate of one of eight accelerators.

`table` extrapolates to a server with many cores.
"""
import os
import statistics
import sys
import tempfile

from absl import flags

from benchmarks import contenders
from benchmarks import input_data
from benchmarks import object_store
from benchmarks import outputs
from common import app
from common.errors import UserError
import imagenet_input

CORES = 1, 2
BATCHES_PER_ROUND = 16
FILL_SECS = 5.0    # fills the largest read-ahead buffer
# Repeats make shards as long as those of ImageNet: 1,200 records each.
STORE_REPEATS = 12
READ_AHEAD_MB = 0, 16, 64, 256
# Milliseconds before each answer; share of answers that take longer, and how many seconds longer.
STORES = (5, 0, 0), (20, 0, 0), (100, 0, 0), (20, 0.002, 0.5)
# Eight Ascend 910 take 6,067 images a second (MindCV, EfficientNet-B0).
DEMAND_IMAGES_PER_SEC = 6067
SERVER_RANKS, SERVER_CORES = 8, 192


def define_flags():
    flags.DEFINE_string('json', None, 'File to write the figures to.')
    flags.DEFINE_integer('rounds', 15, 'Number of turns of each number of cores.', lower_bound=1)
    flags.DEFINE_float('store_secs', 30.0, 'Seconds to read with each setting from each store.',
                       lower_bound=0.1, upper_bound=3600)


def _worker(data_dir, *more_flags):
    """Returns the command line of a process that reads training input."""
    return [sys.executable, '-m', 'benchmarks.input_worker', f'--data_dir={data_dir}',
            '--is_training', f'--image_size={input_data.IMAGE_SIZE}',
            f'--batch_size={input_data.BATCH_SIZE}', *more_flags]


def measure_cores(data_dir, rounds):
    """Returns the figures for each number of cores in `CORES`, and for the reader alone."""
    own_cores = sorted(os.sched_getaffinity(0))
    commands = {
        f'cores_{count}': (['taskset', '--cpu-list', ','.join(map(str, own_cores[:count])),
                            *_worker(data_dir)], {}) for count in CORES}
    commands['reader'] = _worker(data_dir, '--is_reader'), {}
    with contenders.started(commands) as started:
        turns = contenders.take_turns(started, rounds, BATCHES_PER_ROUND)
        return {name: {
            'images_per_sec': round(statistics.median(
                BATCHES_PER_ROUND * input_data.BATCH_SIZE / turn['secs']
                for turn in turns[name]), 1),
            'core_ms_per_image': round(statistics.median(
                turn['core_secs'] * 1000 / BATCHES_PER_ROUND / input_data.BATCH_SIZE
                for turn in turns[name]), 3),
            'open_files': contender.facts['open_files'],
            'peak_rss_mb': round(contender.finish()['peak_rss_mb'], 1)}
                for name, contender in started.items()}


def measure_stores(data_dir, secs):
    """Yields the figures for each store in `STORES` and each value in `READ_AHEAD_MB`, dicts.

    Args:
      data_dir: str, directory of the shards.
      secs: float, duration of a measurement if the reader never waits.
    """
    batches_per_sec = DEMAND_IMAGES_PER_SEC / SERVER_RANKS / input_data.BATCH_SIZE
    num_batches = max(1, int(secs * batches_per_sec))
    commands = {megabytes: (_worker(
        object_store.URL, '--is_reader', f'--read_ahead_mb={megabytes}',
        f'--batches_per_sec={batches_per_sec}'), {}) for megabytes in READ_AHEAD_MB}
    with object_store.serving(data_dir, STORE_REPEATS) as store, contenders.started(
            commands) as started:
        for latency_ms, store.slow_share, store.slow_secs in STORES:
            store.latency_secs = latency_ms / 1000
            for megabytes, reader in started.items():
                # Consumes the records that were read ahead from the previous store.
                reader.run(max(1, int(min(secs, FILL_SECS) * batches_per_sec)))
                num_requests, num_bytes = store.num_requests, store.num_bytes
                turn = reader.run(num_batches)
                num_images = num_batches * input_data.BATCH_SIZE
                yield {
                    'latency_ms': latency_ms, 'slow_share': store.slow_share,
                    'slow_secs': store.slow_secs, 'read_ahead_mb': megabytes,
                    'stall': round(sum(turn['results']) / turn['secs'], 3),
                    'longest_wait_secs': round(max(turn['results']), 2),
                    'requests_per_image': round(
                        (store.num_requests - num_requests) / num_images, 3),
                    'kilobytes_per_image': round(
                        (store.num_bytes - num_bytes) / num_images / 1000, 1)}


def main(argv):
    """Prints the figures and the table that they lead to."""
    del argv
    options = flags.FLAGS
    outputs.check_json(options.json)
    if len(os.sched_getaffinity(0)) < max(CORES):
        raise UserError(f'benchmarks.input_cost: this process may use one core only; run it on a '
                        f'machine with {max(CORES)} cores.')
    with tempfile.TemporaryDirectory(prefix='input-cost-') as work_dir:
        data_dir = os.path.join(work_dir, input_data.FULL)
        input_data.write_shards(data_dir, input_data.make_pictures())
        figures = measure_cores(data_dir, options.rounds)
        figures['kilobytes_per_image'] = round(imagenet_input.ImageNetInput(
            data_dir, True, input_data.IMAGE_SIZE, 1).mean_record_bytes() / 1000, 1)
        print(figures, flush=True)
        figures['stores'] = []
        for row in measure_stores(data_dir, options.store_secs):
            print(row, flush=True)
            figures['stores'].append(row)
    print(table(figures), store_table(figures), sep='\n\n')
    outputs.write_json(options.json, figures)


def table(figures):
    """Returns a Markdown table: the figures of one and two cores, and estimates for a server."""
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
    fewer_cores, more_cores = CORES
    core_mb = (used['peak_rss_mb'] - figures[f'cores_{fewer_cores}']['peak_rss_mb']) / (
        more_cores - fewer_cores)
    memory_mb = used['peak_rss_mb'] + (cores - more_cores) * core_mb
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
    """Returns a Markdown table of the object stores, one column for each --read_ahead_mb."""
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
