"""The house: layers of modules, and what an import may not do."""
import ast
import os
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# Folders and top-level modules from the top layer down. A module imports only from lower layers;
# the modules of one folder may import each other, without a circle.
LAYERS = (
    ('main', 'export_model', 'predict', 'inspect_model_architecture', 'boot_modelarts', 'report',
     'benchmarks'),
    ('training',),
    ('export', 'weights'),
    ('config', 'analysis'),
    ('model_builder_factory', 'imagenet_input'),
    ('efficientnet_builder',),
    ('efficientnet_cpu',),
    ('efficientnet_model', 'autoaugment', 'preprocessing', 'dataset'),
    ('runtime', 'run_log'),
    ('checkpoints',),
    ('condconv_layers',),
    ('cpu_layers', 'lars_optimizer', 'tfrecords'),
    ('common',),
)
LAYER_OF = {place: number for number, places in enumerate(LAYERS) for place in places}
# Former names that the documentation had: a few lines each, which lead upwards.
SHIMS = {'training.report', 'training.modelzoo', 'training.results'}
OTHER_FOLDERS = {'recipes', 'test', 'docs'}


def python_files():
    """Module name -> path of every module of the program, packages by their own name."""
    listed = subprocess.run(
        ['git', 'ls-files', '--cached', '--others', '--exclude-standard', '*.py'], cwd=ROOT,
        stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    paths = {}
    for path in listed:
        if path.split('/')[0] != 'test' and os.path.exists(os.path.join(ROOT, path)):
            name = path[:-len('.py')].replace('/', '.')
            paths[name[:-len('.__init__')] if name.endswith('.__init__') else name] = path
    return paths


PATHS = python_files()


def parse(module):
    with open(os.path.join(ROOT, PATHS[module])) as file:
        return ast.parse(file.read())


TREES = {module: parse(module) for module in PATHS}


def imported_modules(module):
    """Full names of all that a module imports, at its top or inside a function."""
    names = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inner = f'{node.module}.{alias.name}'
                names.add(inner if inner in PATHS or node.module == 'absl' else node.module)
    return names


def is_entry_point(module):
    return any(isinstance(node, ast.If) and '__main__' in ast.dump(node.test)
               for node in TREES[module].body)


IMPORTS = {module: imported_modules(module) & set(PATHS) for module in PATHS}
ENTRY_POINTS = {module for module in PATHS if is_entry_point(module)}


def place_of(module):
    return module.split('.')[0]


def test_the_house_is_that_of_the_design():
    assert {place_of(module) for module in PATHS} <= set(LAYER_OF)
    folders = {path.split('/')[0] for path in subprocess.run(
        ['git', 'ls-files', '--cached', '--others', '--exclude-standard'], cwd=ROOT,
        stdout=subprocess.PIPE, text=True, check=True).stdout.split('\n')
        if '/' in path and not path.startswith('.') and os.path.exists(os.path.join(ROOT, path))}
    packages = {place for place in LAYER_OF if any(
        module.startswith(f'{place}.') for module in PATHS)}
    assert folders == packages | OTHER_FOLDERS


@pytest.mark.parametrize('module', sorted(set(PATHS) - SHIMS))
def test_a_module_imports_from_lower_layers_only(module):
    # A module that is run with python -m is an entry point wherever it lies.
    own = 0 if module in ENTRY_POINTS else LAYER_OF[place_of(module)]
    wrong = {other for other in IMPORTS[module] if place_of(other) != place_of(module)
             and LAYER_OF[place_of(other)] <= own}
    assert not wrong


def test_nobody_imports_an_entry_point():
    assert not [(module, other) for module in PATHS for other in IMPORTS[module] & ENTRY_POINTS]


def circles(arrows):
    """The first circle of a graph, node -> its successors, as a list; None if there is none."""
    done = set()

    def search(node, path):
        if node in path:
            return path[path.index(node):] + [node]
        if node in done:
            return None
        for successor in sorted(arrows.get(node, ())):
            found = search(successor, path + [node])
            if found:
                return found
        done.add(node)
        return None

    return next(filter(None, (search(node, []) for node in sorted(arrows))), None)


def test_there_is_no_circle_between_modules():
    assert circles(IMPORTS) is None


def test_there_is_no_circle_between_folders():
    arrows = {}
    for module in set(PATHS) - SHIMS - ENTRY_POINTS:
        arrows.setdefault(place_of(module), set()).update(
            place_of(other) for other in IMPORTS[module] if place_of(other) != place_of(module))
    assert circles(arrows) is None


def test_no_two_modules_have_the_same_name():
    names = [module.split('.')[-1] for module in sorted(set(PATHS) - SHIMS)]
    assert len(set(names)) == len(names), {name for name in names if names.count(name) > 1}


def test_no_two_classes_have_the_same_name():
    classes = [node.name for tree in TREES.values() for node in tree.body
               if isinstance(node, ast.ClassDef)]
    assert len(set(classes)) == len(classes), {
        name for name in classes if classes.count(name) > 1}


def test_no_local_name_hides_an_imported_module():
    """Python finds out at run time only, with an UnboundLocalError."""
    hidden = []
    for module in sorted(set(PATHS) - SHIMS):
        imported = {alias.asname or alias.name for node in TREES[module].body
                    if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names}
        for function in ast.walk(TREES[module]):
            if isinstance(function, (ast.FunctionDef, ast.Lambda)):
                names = {argument.arg for argument in ast.walk(function.args)
                         if isinstance(argument, ast.arg)}
                names |= {node.id for node in ast.walk(function)
                          if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
                hidden += [(module, name) for name in names & imported]
    assert not hidden


def test_modules_and_functions_are_short():
    """Lines of a module, and from the first to the last statement's first line of a function."""
    for module, tree in TREES.items():
        with open(os.path.join(ROOT, PATHS[module])) as file:
            num_lines = len(file.readlines())
        assert num_lines <= 420, module
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef):
                last_line = max(node.lineno for node in ast.walk(function)
                                if hasattr(node, 'lineno'))
                assert last_line - function.lineno < 60, f'{module}.{function.name}'


def test_shims_are_a_few_lines():
    for module in SHIMS:
        with open(os.path.join(ROOT, PATHS[module])) as file:
            assert len(file.readlines()) <= 6, module


@pytest.mark.parametrize('module', sorted(PATHS))
def test_flags_are_read_by_entry_points_and_npu_bridge_is_named_in_one_place(module):
    names = imported_modules(module)
    reads_flags = {'absl.flags', 'absl.app'} & names
    assert not reads_flags or module in ENTRY_POINTS or place_of(module) == 'config' or (
        module == 'common.app')
    assert not any(name.split('.')[0] == 'npu_bridge' for name in names) or module == 'runtime.npu'


@pytest.mark.slow
def test_each_module_can_be_imported_alone_and_changes_neither_flags_nor_logging():
    """A fresh process for each would take a minute: the modules are forgotten in between."""
    script = """
import importlib, logging, sys
from absl import flags
import tensorflow
known = set(flags.FLAGS)
logs = logging.root.level, list(logging.root.handlers)
for module in sys.argv[1:]:
    for name in list(sys.modules):
        if name.split('.')[0] in {other.split('.')[0] for other in sys.argv[1:]}:
            del sys.modules[name]
    importlib.import_module(module)
    assert set(flags.FLAGS) == known, (module, set(flags.FLAGS) - known)
    assert (logging.root.level, logging.root.handlers) == logs, module
"""
    modules = [module for module in PATHS if place_of(module) != 'benchmarks'
               and module != 'runtime.npu']
    subprocess.run([sys.executable, '-c', script, *modules], cwd=ROOT, check=True)


def test_modules_have_no_work_at_import():
    """At its top level a module defines; the only call statements stand behind the main guard."""
    for module, tree in TREES.items():
        calls = [node for node in tree.body if isinstance(node, (ast.For, ast.While, ast.With)) or (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))]
        assert not calls, f'{module} works at import in line {calls[0].lineno}'


def test_one_module_reads_json():
    # The contenders of a benchmark answer over a pipe.
    calls = {module for module in PATHS for node in ast.walk(TREES[module])
             if isinstance(node, ast.Attribute) and node.attr in ('load', 'loads')
             and isinstance(node.value, ast.Name) and node.value.id == 'json'}
    assert calls == {'common.json_files', 'benchmarks.contenders'}
