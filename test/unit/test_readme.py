"""README and docs/ are true: generated tables, commands that parse, links that lead somewhere."""
import glob
import json
import os
import re
import shlex
import subprocess
import sys

import pytest

from benchmarks import contest
from benchmarks import evaluation_cost
from benchmarks import input_cost
from benchmarks import protocol
from benchmarks import scaling
from benchmarks import soak
from benchmarks import summary_overhead
from common import foreign_flags
from config import settings
import inspect_model_architecture
from run_log import event_log
from training import summaries

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
README, CHINESE_README = (os.path.join(ROOT, name) for name in ('README.md', 'README.zh-CN.md'))
ENGLISH = [README, *sorted(glob.glob(os.path.join(ROOT, 'docs', '*.md')))]
CHINESE = [CHINESE_README, *sorted(glob.glob(os.path.join(ROOT, 'docs', 'zh', '*.md')))]
# An English page and its translation.
PAIRS = [(README, CHINESE_README)] + [
    (path.replace('/docs/zh/', '/docs/'), path) for path in CHINESE[1:]]
CODE_BLOCK = re.compile(r'^ *```(\w*)\n(.*?)^ *```$', re.MULTILINE | re.DOTALL)
LINK = r'\]\(([^)]+)\)'


def read(path):
    with open(path, encoding='utf-8') as file:
        return file.read()


def flags_table():
    rows = ['| flag | default | what |', '|---|---|---|']
    for group, fields in settings.by_group().items():
        rows.append(f'| **{group}** | | |')
        for field in fields:
            default = '' if field.default in (None, '', ()) else f'`{field.default}`'
            choices = field.metadata['choices'] or ()
            one_of = f" One of {', '.join(choices)}." if 0 < len(choices) < 12 else ''
            rows.append(f"| `--{field.name}` | {default} | {field.metadata['help']}{one_of} |")
    return '\n'.join(rows)


# Flag -> its default in Google's scripts and in Huawei's 2021 port; None where it is not known.
THEIR_DEFAULTS = {
    'model_name': ('efficientnet-b0', None), 'batch_size': ('2048 of all devices', 128),
    'eval_batch_size': (1024, 8), 'train_steps': (218949, 250000), 'steps_per_eval': (6255, 6255),
    'iterations_per_loop': (1251, None), 'log_step_count_steps': (64, None),
    'use_cache': (True, None), 'transpose_input': (True, True),
    'use_async_checkpointing': (None, True)}


def migrating_table():
    rows = ["| flag | Google's scripts | 2021 port | here |", '|---|---|---|---|']
    fields = {field.name: field for _, field, _ in settings.rows()}
    for name, theirs in THEIR_DEFAULTS.items():
        ours = fields[name].default
        if ours is None:
            ours = fields[name].metadata['help'].partition('default: ')[2].rstrip('.')
        cells = ['' if value is None else f'`{value}`' for value in theirs]
        rows.append(f"| `--{name}` | {' | '.join(cells)} | {ours} |")
    return '\n'.join(rows)


def replaced_table():
    rows = ['| flag | here |', '|---|---|']
    return '\n'.join(rows + [f'| `--{name}` | {ours} |' for name, ours
                             in sorted(foreign_flags.replacements().items())])


def models_table():
    return subprocess.run(
        [sys.executable, 'inspect_model_architecture.py', '--compare=all', '--markdown',
         '--batch_size=1'], cwd=ROOT, stdout=subprocess.PIPE, check=True,
        text=True).stdout.strip()


def figures(name):
    with open(os.path.join(ROOT, 'benchmarks', f'{name}.json')) as file:
        return json.load(file)


def cell(form, row):
    """A figure of a row in some form; empty if it was not measured."""
    try:
        return form.format(**row)
    except KeyError:
        return ''


def create_table():
    measured = figures('dataset_create')
    head = (f"{measured['num_images']:,} JPEGs of {measured['bytes_per_image'] / 1000:.0f} kB, "
            f"{measured['num_cores']} CPU cores")
    return '\n'.join([
        f'| {head} | images/s | shards, MB |', '|---|--:|--:|',
        f"| `cp -r` | {measured['cp_images_per_sec']:,} | |",
        f"| a copy with {measured['num_cores']} processes | "
        f"{measured['parallel_copy_images_per_sec']:,} | |",
        f"| dataset.create | {measured['create_images_per_sec']:,} "
        f"| {cell('{create_shards_megabytes:,}', measured)} |",
        '| dataset.create --max_short_side=288 '
        f"| {cell('{create_288_images_per_sec:,}', measured)} "
        f"| {cell('{create_288_shards_megabytes:,}', measured)} |", '',
        f"Its largest process had {measured['peak_megabytes']} MB, and with a tenth of the images "
        f"{measured['peak_megabytes_of_a_tenth']} MB "
        '([benchmarks/dataset_create.py](../benchmarks/dataset_create.py)).'])


def speed_table():
    """A row for each benchmark of a whole step, from the files that they wrote."""
    rows = ['| {model_name} at {image_size} px | per-example loop | ours | ours, oneDNN '
            '| PyTorch, timm | the same, torch.compile | ours / loop | ours / PyTorch |'.format(
                **figures('train_step_32')), '|---' + '|--:' * 7 + '|']
    for task, label, batch_size in (
            ('train_step', 'training', 8), ('train_step', 'training', 32),
            ('infer', 'inference', 1), ('infer', 'inference', 32)):
        measured = figures(f'{task}_{batch_size}')
        medians = {name: measured[name]['images_per_sec']['median']
                   for name in protocol.CONTENDERS if name in measured}
        cells = [f'{medians[name]:.1f}' if name in medians else ''
                 for name in protocol.CONTENDERS if name != protocol.OPTIMIZED]
        to_pytorch = (f'{medians[protocol.OURS] / medians[protocol.PYTORCH]:.2f}'
                      if protocol.PYTORCH in medians else '')
        rows.append(f"| {label}, batch {batch_size}, images/s | {' | '.join(cells)} "
                    f"| {measured['ratio']:.2f} | {to_pytorch} |")
    measured = figures('train_step_32')
    naive, ours = measured['naive'], measured['ours']
    for label, keys, form in (
            ('build + first step, batch 32, s', ('build_secs', 'first_step_secs'), '{:.0f}'),
            ('nodes that a step runs, batch 32', ('step_nodes',), '{:,}'),
            ('all nodes, batch 32', ('graph_nodes',), '{:,}'),
            ('peak memory, batch 32, MB', ('peak_rss_mb',), '{:,.0f}')):
        values = [sum(contender[key] for key in keys) for contender in (naive, ours)]
        cells = [form.format(value) for value in values]
        rows.append(f"| {label} | {' | '.join(cells)} | | | | {values[1] / values[0]:.2f} | |")
    return '\n'.join(rows)


def optimizer_table():
    """Training on a CPU as main.py does it, beside the same with TensorFlow's graph optimizer."""
    return '\n\n'.join(
        f'Batch size {batch_size}:\n\n' + contest.table(figures(f'graph_optimizer_{batch_size}'))
        for batch_size in (8, 32))


def memory_table():
    """The estimate of a training step's memory beside what the benchmarks' processes had."""
    batch_sizes = [8, 32]
    measured = {size: figures(f'train_step_{size}') for size in batch_sizes}
    estimate = inspect_model_architecture.estimate_memory(
        measured[8]['model_name'], measured[8]['image_size'], batch_sizes=batch_sizes)
    rows = ['| {model_name} at {image_size} px, float32 | estimate, MB | peak of the process, MB '
            '|'.format(**measured[8]), '|---|--:|--:|']
    for record in estimate.content['memory']:
        size = record['batch_size']
        rows.append(f"| batch {size} | {record['bytes']['total']['float32'] / 1e6:,.0f} "
                    f"| {measured[size]['ours']['peak_rss_mb']:,.0f} |")
    return '\n'.join(rows)


def finetune_table():
    measured = figures('finetune')
    rows = [(f'{label}', measured['best'][way]) for way, label in (
        ('fine_tuning', "from ImageNet's weights"),
        ('head_only', "from ImageNet's weights, `--freeze=all_but_head`"),
        ('from_scratch', 'from scratch'))]
    rates = ', '.join(measured['top_1']['from_scratch'])
    return '\n'.join(
        [f"| {measured['train_steps']} steps on {measured['train_images']} images of "
         f"{measured['image_size']} pixels | top-1 on {measured['validation_images']:,} others |",
         '|---|--:|', *(f'| {label} | {top_1:.3f} |' for label, top_1 in rows), '',
         f'Each with the best `--base_learning_rate` of {rates} '
         '([benchmarks/finetune.py](../benchmarks/finetune.py)).'])


def input_table():
    labels = {'train_none': 'training', 'train_autoaugment': 'training, AutoAugment',
              'train_randaugment': 'training, RandAugment(2, 10)', 'eval': 'evaluation',
              'train_none_288': 'training, shorter side 288',
              'train_autoaugment_288': 'training, shorter side 288, AutoAugment',
              'pil_loader': 'PyTorch and Pillow',
              'pil_loader_autoaugment': "PyTorch and Pillow, timm's AutoAugment"}
    columns = {'images/s': '{images_per_sec:,.0f}',
               'against full-size shards': '{ratio_to_full_size:.2f}',
               'against PyTorch and Pillow': '{ratio_to_pil_loader:.2f}',
               'share of the ceiling': '{ratio_to_ceiling:.2f}',
               "milliseconds of a core an image (the ceiling's)":
                   '{core_ms_per_image:.2f} ({ceiling_core_ms_per_image:.2f})',
               'memory, MB': '{peak_rss_mb:.0f}', 'first batch, s': '{first_batch_secs:.1f}'}
    measured = figures('input_pipeline')
    assert set(measured) == set(labels), 'measure all rows, with --pytorch_python'

    rows = [f"| 2 CPU cores, batches of 32, 224 pixels | {' | '.join(columns)} |",
            '|---' + '|--:' * len(columns) + '|']
    for case, label in labels.items():
        cells = [cell(form, measured.get(case, {})) for form in columns.values()]
        rows.append(f"| {label} | {' | '.join(cells)} |")
    return '\n'.join(rows)


def profile_table():
    measured = figures('augmentation_ops')
    rows = ['| step | milliseconds of a core |', '|---|--:|']
    return '\n'.join(rows + [f'| {name} | {milliseconds:.2f} |' for name, milliseconds
                             in sorted(measured.items(), key=lambda item: -item[1])])


def test_the_results_are_those_published_and_measured():
    results_section, = (section for section in sections(README) if section.startswith('Results'))
    published = ', '.join(
        f'{inspect_model_architecture.PUBLISHED[f"efficientnet-condconv-b0-{name}"].top_1} %'
        for name in ('4e', '8e', '8e-depth'))
    best = figures('finetune')['best']
    for cell in published, f"{best['fine_tuning']:.1%}, {best['from_scratch']:.1%}".replace(
            '%', ' %'):
        assert f'| {cell} |' in results_section


def test_fine_tuning_beats_training_from_scratch_as_measured():
    best = figures('finetune')['best']
    assert best['fine_tuning'] > best['from_scratch']


@pytest.mark.slow
@pytest.mark.parametrize('name, generate', [
    ('flags', flags_table), ('migrating', migrating_table), ('replaced', replaced_table),
    ('models', models_table), ('create', create_table),
    ('memory', memory_table),
    ('finetune', finetune_table), ('scaling', lambda: scaling.table(figures('scaling'))),
    ('soak', lambda: soak.table(figures('soak'))),
    ('evaluation', lambda: evaluation_cost.table(figures('evaluation_cost'))),
    ('summaries', lambda: summary_overhead.table(figures('summary_overhead'))),
    ('tags', summaries.tags_table), ('events', event_log.schema_table), ('input', input_table),
    ('speed', speed_table), ('optimizer', optimizer_table), ('profile', profile_table),
    ('cost', lambda: input_cost.table(figures('input_cost'))),
    ('store', lambda: input_cost.store_table(figures('input_cost')))])
def test_generated_tables_are_up_to_date(name, generate, regenerates_goldens):
    """A failure means that a page no longer says what the program does: regenerate it."""
    generated = generate()
    begin, end = f'<!-- {name}: generated -->\n', f'\n<!-- {name}: end -->'
    pages = [path for path in ENGLISH + CHINESE if begin in read(path)]
    assert pages
    for path in pages:
        before, rest = read(path).split(begin)
        table, after = rest.split(end)
        if regenerates_goldens:
            with open(path, 'w', encoding='utf-8') as file:
                file.write(before + begin + generated + end + after)
        else:
            assert table == generated, path


def prose(path):
    """A page without its code blocks."""
    return CODE_BLOCK.sub('', read(path))


def headings(path):
    """The headings of a page, each as (level, text)."""
    return [(len(marks), text)
            for marks, text in re.findall(r'^(#+) (.+)$', prose(path), re.MULTILINE)]


def anchors(path):
    """The headings as GitHub links to them: letters of any script, digits, _ and - stay."""
    return [re.sub(r'[^\w\- ]', '', text.lower()).replace(' ', '-') for _, text in headings(path)]


def target_of(path, link):
    """Returns (file, anchor) that a link of a page leads to; (None, '') for one to the web."""
    if '://' in link:
        return None, ''
    file, _, anchor = link.partition('#')
    return (os.path.normpath(os.path.join(os.path.dirname(path), file)) if file else path), anchor


def sections(path):
    """The text before the first heading, then that of each heading up to the next one."""
    return re.split(r'^#+ ', prose(path), flags=re.MULTILINE)


def links(path, section):
    """The links of a section; equal for a page and its translation."""
    found = []
    for link in re.findall(LINK, section):
        file, anchor = target_of(path, link)
        name = link if file is None else file.replace('/docs/zh/', '/docs/').replace('.zh-CN', '')
        found.append((name, anchors(file).index(anchor) if anchor else None))
    return sorted(found, key=str)


PARTS = {'links': links}
for part, pattern in (('marks', r'<!--.*-->'), ('figures', r'(?<![A-Za-z_\d.])\d+(?:[.,]\d+)*')):
    PARTS[part] = lambda path, section, pattern=pattern: sorted(
        re.findall(pattern, re.sub(LINK, ']', section)))


@pytest.mark.parametrize('english, chinese', PAIRS, ids=lambda path: os.path.relpath(path, ROOT))
def test_a_translation_has_the_same_headings_and_code_blocks(english, chinese):
    assert [level for level, _ in headings(chinese)] == [level for level, _ in headings(english)]
    assert CODE_BLOCK.findall(read(chinese)) == CODE_BLOCK.findall(read(english))


@pytest.mark.parametrize('part', PARTS.values(), ids=PARTS)
@pytest.mark.parametrize('english, chinese', PAIRS, ids=lambda path: os.path.relpath(path, ROOT))
def test_a_translation_has_the_same(english, chinese, part):
    for of_english, of_chinese in zip(sections(english), sections(chinese)):
        assert part(chinese, of_chinese) == part(english, of_english), of_english.splitlines()[:1]


def test_each_page_links_to_its_translation_in_its_first_lines():
    for pair in PAIRS:
        for path, other in pair, pair[::-1]:
            first_lines = '\n'.join(read(path).splitlines()[:8])
            assert other in [target_of(path, link)[0] for link in re.findall(LINK, first_lines)]


def test_the_readme_is_short():
    assert len(read(README).splitlines()) <= 250
    assert os.path.getsize(README) <= 24000


def test_the_index_has_every_page():
    index = os.path.join(ROOT, 'docs', 'README.md')
    linked = {target_of(index, link)[0] for link in re.findall(LINK, read(index))}
    assert set(ENGLISH + CHINESE) - {README, CHINESE_README, index} <= linked


def commands():
    """The commands of all English pages' code blocks, continued lines joined."""
    blocks = [block for path in ENGLISH for kind, block in CODE_BLOCK.findall(read(path))
              if kind == 'bash']
    lines = '\n'.join(blocks).replace('\\\n', ' ').splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith('#')]


def defined_flags(programs, script):
    """Names of the flags of an entry point, from its --helpfull."""
    text = programs.run(script, '--helpfull').stdout
    return set(re.findall(r'^\s+--(?:\[no\])?(\w+)', text, re.MULTILINE))


@pytest.mark.slow
def test_every_command_names_files_and_flags_that_exist(programs):
    known = {}
    for command in commands():
        words = shlex.split(command)
        # Exported files are not here, nor are the programs of an Ascend host.
        if words[0] == 'bash' and not words[1].startswith('EXPORT/'):
            assert os.path.exists(os.path.join(ROOT, words[1])), command
            usage = subprocess.run(['bash', words[1], '--help'], cwd=ROOT, check=True,
                                   stdout=subprocess.PIPE, text=True).stdout
            options = {word.split('=')[0] for word in words[2:] if word.startswith('--')}
            assert options <= set(re.findall(r'^  (--\w+)', usage, re.MULTILINE)), command
        elif words[0] == '.venv/bin/python':
            script, *arguments = words[1 + (words[1] == '-m'):]
            if script not in known:
                known[script] = defined_flags(programs, script) | {'flagfile'}
            for word in arguments:
                if word.startswith('--'):
                    name = word[2:].split('=')[0]
                    assert {name, name[2:] if name.startswith('no') else name} & known[script], (
                        command, name)
                if word.startswith('--flagfile='):
                    assert os.path.exists(os.path.join(ROOT, word.split('=')[1])), command
    assert len(known) >= 4


@pytest.mark.parametrize('path', ENGLISH + CHINESE, ids=lambda path: os.path.relpath(path, ROOT))
def test_every_link_leads_to_a_file_or_a_heading(path):
    assert len(set(anchors(path))) == len(anchors(path))
    for link in re.findall(LINK, prose(path)):
        file, anchor = target_of(path, link)
        assert file is None or os.path.exists(file), link
        assert not anchor or anchor in anchors(file), link
