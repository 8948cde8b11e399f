"""Argument names and annotations of this package's constructors, read from their source without importing them.

Importing a network or a data set imports PyTorch, which takes seconds; a mistyped option is reported before that.
"""

import ast
import builtins
import importlib
import typing
from functools import cache
from typing import Any

from seg.cli.conf_files import PACKAGE

EVALUATED_MODULES = (
    "typing",
    "collections.abc",
    "pydantic",
)  # modules of which annotations consist
Arguments = dict[str, Any]  # name of an argument -> its annotation; None: unknown or none


class SourceModule:
    """Parsed module of this package.

    Args:
        name: dotted name, ``seg.models.unet``.

    Raises:
        OSError: if it has no source.
    """

    def __init__(self, name: str) -> None:
        path = PACKAGE.joinpath(*name.split(".")[1:])
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        self.values: dict[str, ast.expr] = {}  # assigned names
        self.definitions: dict[str, ast.ClassDef | ast.FunctionDef] = {}
        self.imports: dict[str, tuple[str, str]] = {}  # name here -> module, name there
        tree = ast.parse(file.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    self.imports[alias.asname or alias.name] = (node.module, alias.name)
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                self.definitions[node.name] = node
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.values[node.targets[0].id] = node.value


class AnnotationNames(dict[str, Any]):
    """Namespace in which the annotations of a module are evaluated; names are looked up when used."""

    def __init__(self, module: SourceModule) -> None:
        super().__init__()
        self.module = module

    def __missing__(self, name: str) -> Any:
        """Return the value of a name; raise NameError for one that is not part of a plain annotation."""
        module = self.module
        if name in module.values:
            return evaluate(module, module.values[name])
        if name in module.definitions:
            return typed_dict(module, module.definitions[name])
        if name in module.imports:
            source, original = module.imports[name]
            if source in EVALUATED_MODULES:
                return getattr(importlib.import_module(source), original)
            if is_own(source):
                return AnnotationNames(load_source(source))[original]
        if hasattr(builtins, name):
            return getattr(builtins, name)
        raise NameError(name)


@cache
def load_source(name: str) -> SourceModule:
    """Return a parsed module of this package."""
    return SourceModule(name)


@cache
def read_arguments(target: str) -> Arguments | None:
    """Return the arguments of a constructor or function of this package, without importing it.

    Args:
        target: dotted name, ``seg.models.UNet``.

    Returns:
        name -> annotation; None if it isn't of this package, has no readable source, or accepts any argument.
    """
    module, _, name = target.rpartition(".")
    if not is_own(module):
        return None
    try:
        source, node = find_definition(load_source(module), name)
        source, function = find_constructor(source, node)
    except (OSError, LookupError, SyntaxError):
        return None
    if function is None:
        return {}
    given = function.args
    if given.kwarg is not None:
        return None
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    first = 1 if isinstance(node, ast.ClassDef) else 0  # without self
    return {argument.arg: evaluate_known(source, argument.annotation) for argument in named[first:]}


def is_own(module: str) -> bool:
    """Return True for a module of this package."""
    return module.split(".")[0] == PACKAGE.name


def find_definition(
    module: SourceModule, name: str
) -> tuple[SourceModule, ast.ClassDef | ast.FunctionDef]:
    """Return a class or function and the module that defines it, following imports; KeyError if there is none."""
    if name in module.definitions:
        return module, module.definitions[name]
    source, original = module.imports[name]
    if not is_own(source):
        raise KeyError(name)
    return find_definition(load_source(source), original)


def find_constructor(
    module: SourceModule, node: ast.ClassDef | ast.FunctionDef
) -> tuple[SourceModule, ast.FunctionDef | None]:
    """Return a function itself, or the ``__init__`` of a class or of its first base; None if no class has one.

    Raises:
        KeyError: if the base is of another library.
    """
    if isinstance(node, ast.FunctionDef):
        return module, node
    for member in node.body:
        if isinstance(member, ast.FunctionDef) and member.name == "__init__":
            return module, member
    if not node.bases:
        return module, None
    base = node.bases[0]
    if not isinstance(base, ast.Name):
        raise KeyError(node.name)
    return find_constructor(*find_definition(module, base.id))


def evaluate_known(module: SourceModule, node: ast.expr | None) -> Any:
    """Return an annotation; None if there is none, or if it names a class, which would have to be imported."""
    if node is None:
        return None
    try:
        value = evaluate(module, node)
    except (NameError, AttributeError, TypeError, OSError):
        return None
    return None if value is Any else value


def evaluate(module: SourceModule, node: ast.expr) -> Any:
    """Return the value of an annotation in its module."""
    code = compile(ast.Expression(node), "annotation", "eval")
    builtins = {"__import__": __import__}  # Python 3.14 imports typing for some unions
    return eval(code, {"__builtins__": builtins}, AnnotationNames(module))  # this package's source


def typed_dict(module: SourceModule, node: ast.ClassDef | ast.FunctionDef) -> Any:
    """Return a TypedDict with the fields of a class; NameError for any other class."""
    bases = [base.id for base in getattr(node, "bases", ()) if isinstance(base, ast.Name)]
    if bases != ["TypedDict"]:
        raise NameError(node.name)
    fields = {
        field.target.id: evaluate_known(module, field.annotation) or Any
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    }
    return typing.TypedDict(node.name, fields)  # ty: ignore
