"""Proves that definitions only moved: `python test/tools/compare_definitions.py BEFORE AFTER`.

BEFORE and AFTER are checkouts. Every function, class and constant at the top level of a module of
the program is compared by its syntax tree, wherever it stands, with module qualifiers, one leading
underscore of names and docstrings stripped. Prints what differs, then one line of counts; exits
with 1 if a definition was changed, lost or added.
"""
import ast
import collections
import os
import sys


def python_files(root):
    """Yields (module name, path) of the program's modules in a checkout, tests left out."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders
                            if not name.startswith('.') and name != '__pycache__')
        for name in sorted(names):
            path = os.path.join(folder, name)
            relative = os.path.relpath(path, root)
            if name.endswith('.py') and not (
                    relative.startswith('test/')):
                yield relative[:-len('.py')].replace('/', '.'), path


class _Stripper(ast.NodeTransformer):
    """Takes module qualifiers, one leading underscore and docstrings out of a tree."""

    def __init__(self, aliases):
        self._aliases = aliases

    def visit_Attribute(self, node):  # noqa: N802
        if isinstance(node.value, ast.Name) and node.value.id in self._aliases:
            return ast.Name(id=_public(node.attr), ctx=node.ctx)
        return self.generic_visit(node)

    def visit_Name(self, node):  # noqa: N802
        return ast.Name(id=_public(node.id), ctx=node.ctx)

    def visit_FunctionDef(self, node):  # noqa: N802
        node.name = _public(node.name)
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        return self.generic_visit(node)

    visit_ClassDef = visit_FunctionDef  # noqa: N815

    def visit_ImportFrom(self, node):  # noqa: N802
        names = {alias.asname or alias.name for alias in node.names}
        return None if names & self._aliases else node


def _public(name):
    return name[1:] if name.startswith('_') and not name.startswith('__') else name


def _aliases(tree, modules):
    """The names by which a module knows other modules of the program."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name for alias in node.names if alias.name in modules}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names
                      if f'{node.module}.{alias.name}' in modules}
    return names


def _name(node):
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return node.name
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    return None


def definitions(root):
    """Name -> Counter of the stripped trees of what is called so."""
    paths = dict(python_files(root))
    modules = {name[:-len('.__init__')] if name.endswith('.__init__') else name for name in paths}
    found = collections.defaultdict(collections.Counter)
    for path in paths.values():
        with open(path, encoding='utf-8') as file:
            tree = ast.parse(file.read())
        stripper = _Stripper(_aliases(tree, modules))
        for node in tree.body:
            if _name(node):
                found[_public(_name(node))][ast.dump(stripper.visit(node))] += 1
    return found


def main(before_root, after_root):
    before, after = definitions(before_root), definitions(after_root)
    num_same = num_different = 0
    for name in sorted({*before, *after}):
        old, new = before.get(name, collections.Counter()), after.get(name, collections.Counter())
        num_same += sum((old & new).values())
        lost, added = sum((old - new).values()), sum((new - old).values())
        if lost or added:
            num_different += max(lost, added)
            print(f'{name}: {lost} of the former trees are gone, {added} are new')
    print(f'{num_same} definitions are the same, {num_different} differ')
    return int(num_different > 0)


if __name__ == '__main__':
    sys.exit(main(*sys.argv[1:]))
