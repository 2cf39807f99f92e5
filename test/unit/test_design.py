"""The house: who may import whom, and what an import may not do."""
import ast
import os
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# A room and the rooms below it that it may know. Every room may know user_error and user_paths.
MODEL = {'model_builder_factory', 'efficientnet_builder', 'efficientnet_model'}
ALLOWED = {
    'main': {'entry_point', 'training.config', 'training.run_loop'},
    'export_model': {'entry_point', 'model_builder_factory', 'training.checkpoints',
                     'dataset.schema', 'export.check', 'export.frozen', 'export.images',
                     'export.network', 'export.onnx', 'export.saved_model', 'export.source',
                     'export.tflite'},
    'predict': {'entry_point', 'model_builder_factory', 'training.checkpoints', 'dataset.schema',
                'export.images', 'export.loading', 'export.source', 'storage'},
    'export.check': {'export.images', 'export.loading', 'dataset.schema'},
    'export.frozen': {'export.network'},
    'export.images': {'imagenet_input', 'preprocessing', 'screening', 'dataset.schema'},
    'export.loading': {'export.network'},
    'export.network': {'imagenet_input'},
    'export.onnx': {'export.loading', 'export.network'},
    'export.saved_model': {'export.check', 'export.loading', 'export.network', 'storage'},
    'export.source': {'model_builder_factory', 'training.checkpoints', 'training.config'},
    'export.tflite': {'export.network'},
    'inspect_model_architecture': {'entry_point', 'imagenet_input', 'training.checkpoints',
                                   'training.config', 'dataset.schema', 'inspection.costs',
                                   'inspection.routing', 'inspection.tables'} | MODEL,
    'inspection.costs': {'efficientnet_model'},
    'inspection.experts': set(),
    'inspection.routing': {'inspection.experts', 'model_builder_factory', 'training.checkpoints'},
    'inspection.tables': set(),
    'boot_modelarts': {'entry_point', 'obs', 'training.config', 'training.run_loop'},
    'obs': {'storage'},
    'storage': set(),
    'entry_point': set(),
    'user_error': set(),
    'user_paths': set(),
    'training.run_loop': {'training.checkpoints', 'training.config', 'training.ending',
                          'training.environment', 'training.evaluations', 'training.finiteness',
                          'training.hooks', 'training.lock', 'training.model_fn',
                          'training.pipelines', 'training.progress', 'training.results',
                          'training.stopping', 'training.summaries', 'runtime', 'screening',
                          'export.saved_model', 'export.source', 'storage'},
    'training.model_fn': {'training.checkpoints', 'training.finiteness', 'training.optimization',
                          'training.summaries', 'training.warm_start', 'model_builder_factory'},
    'training.ending': {'obs', 'storage'},
    'training.finiteness': {'training.checkpoints'},
    'training.lock': set(),
    'training.stopping': set(),
    'training.hooks': {'training.progress', 'training.results'},
    'training.progress': set(),
    'training.summaries': {'inspection.experts', 'screening', 'training.pictures',
                           'training.results'},
    'training.pictures': {'dataset.contact_sheet'},
    'training.environment': set(),
    'training.evaluations': {'inspection.tables', 'training.checkpoints'},
    'training.pipelines': {'imagenet_input', 'model_builder_factory'},
    'training.report': {'entry_point', 'inspection.experts', 'inspection.routing',
                        'training.checkpoints', 'training.config', 'training.evaluations',
                        'training.figures', 'training.page', 'training.pictures',
                        'training.pipelines', 'training.results', 'training.settings', 'training.summaries',
                        'dataset.schema', 'storage'},
    'training.figures': set(),
    'training.page': set(),
    'training.checkpoints': {'training.optimization', 'training.warm_start', 'storage'},
    'training.warm_start': {'training.optimization'},
    'training.optimization': {'lars_optimizer'},
    'training.config': {'dataset.schema', 'entry_point', 'model_builder_factory',
                        'training.checkpoints', 'training.freezing', 'training.settings',
                        'storage'},
    'training.freezing': set(),
    'training.settings': {'model_builder_factory'},
    'training.results': {'storage'},
    'training.modelzoo': {'entry_point', 'training.config', 'training.results', 'storage'},
    'runtime': {'runtime.host', 'runtime.npu'},
    'runtime.host': {'runtime.cluster', 'runtime.diagnostics', 'runtime.folders', 'runtime.saving'},
    'runtime.npu': {'runtime.folders', 'runtime.npu_job'},
    'runtime.npu_job': {'runtime.rank_table'},
    'runtime.cluster': {'runtime.saving'},
    'runtime.rank_table': set(),
    'runtime.diagnostics': set(),
    'runtime.folders': set(),
    'runtime.saving': {'storage'},
    'model_builder_factory': {'efficientnet_builder'},
    'efficientnet_builder': {'efficientnet_model'},
    'efficientnet_model': {'condconv_layers', 'cpu_layers'},
    'condconv_layers': {'cpu_layers'},
    'cpu_layers': set(),
    'imagenet_input': {'autoaugment', 'preprocessing', 'screening', 'shard_reader',
                       'synthetic_input', 'dataset.schema'},
    'shard_reader': set(),
    'synthetic_input': {'dataset.schema'},
    'screening': {'preprocessing', 'dataset.schema'},
    'preprocessing': {'conversions'},
    'autoaugment': {'conversions'},
    'conversions': set(),
    'lars_optimizer': set(),
    'dataset.schema': set(),
    'dataset.sample': {'entry_point', 'dataset.schema'},
    'dataset.create': {'entry_point', 'dataset.imagenet', 'dataset.schema', 'dataset.shards',
                       'dataset.sources'},
    'dataset.inspect': {'entry_point', 'dataset.contact_sheet', 'dataset.records',
                        'dataset.schema', 'storage'},
    'dataset.records': {'dataset.contact_sheet', 'dataset.images', 'dataset.schema'},
    'dataset.contact_sheet': set(),
    'dataset.shards': {'dataset.images', 'dataset.schema', 'dataset.sources'},
    'dataset.imagenet': {'dataset.schema', 'dataset.sources'},
    'dataset.sources': {'dataset.images', 'dataset.schema'},
    'dataset.images': set(),
}
READS_FLAGS = {'main', 'export_model', 'predict', 'inspect_model_architecture', 'entry_point',
               'boot_modelarts', 'training.config', 'training.modelzoo', 'training.report',
               'dataset.create', 'dataset.inspect', 'dataset.sample'}
PACKAGES = ('training', 'runtime', 'dataset', 'inspection', 'export')


def module_paths():
    """Module name -> path of every module of the program."""
    paths = {}
    for folder in ('', *PACKAGES):
        for name in sorted(os.listdir(os.path.join(ROOT, folder))):
            stem, extension = os.path.splitext(name)
            if extension == '.py':
                parts = ([folder] if folder else []) + ([] if stem == '__init__' else [stem])
                paths['.'.join(parts)] = os.path.join(ROOT, folder, name)
    return paths


PATHS = module_paths()
ROOMS = [name for name in PATHS if name not in PACKAGES or name == 'runtime']


def imported_modules(path):
    """Full names of all that a file imports, at its top or inside a function."""
    with open(path) as file:
        tree = ast.parse(file.read())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inner = f'{node.module}.{alias.name}'
                names.add(inner if inner in PATHS or node.module == 'absl' else node.module)
    return names


@pytest.mark.parametrize('room', ROOMS)
def test_a_room_knows_only_the_rooms_below_it(room):
    own = {name for name in imported_modules(PATHS[room]) if name in PATHS}
    assert own <= ALLOWED[room] | {'user_error', 'user_paths'}


@pytest.mark.parametrize('room', ROOMS)
def test_flags_are_read_by_entry_points_and_npu_bridge_is_named_in_one_place(room):
    names = imported_modules(PATHS[room])
    assert 'absl.flags' not in names or room in READS_FLAGS
    assert not any(name.split('.')[0] == 'npu_bridge' for name in names) or room == 'runtime.npu'


@pytest.mark.slow
def test_each_room_can_be_imported_alone_and_registers_no_flag():
    """A fresh process for each would take a minute: the modules are forgotten in between."""
    script = """
import importlib, sys
from absl import flags
import tensorflow
known = set(flags.FLAGS)
for room in sys.argv[1:]:
    for name in list(sys.modules):
        if name.split('.')[0] in {other.split('.')[0] for other in sys.argv[1:]}:
            del sys.modules[name]
    importlib.import_module(room)
    assert set(flags.FLAGS) == known, (room, set(flags.FLAGS) - known)
"""
    rooms = [room for room in ROOMS if room != 'runtime.npu']
    subprocess.run([sys.executable, '-c', script, *rooms], cwd=ROOT, check=True)


def test_modules_have_no_work_at_import():
    """At its top level a module defines; the only call statements stand behind the main guard."""
    for room in ROOMS:
        with open(PATHS[room]) as file:
            body = ast.parse(file.read()).body
        calls = [node for node in body if isinstance(node, (ast.For, ast.While, ast.With)) or (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))]
        assert not calls, f'{room} works at import in line {calls[0].lineno}'
