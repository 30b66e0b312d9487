"""A template's tree, changed so that what makes, repeats or writes values passes through filters.

Knows the filters only by name.
"""

import re
from typing import Any, cast

from jinja2 import Environment, nodes
from jinja2.exceptions import SecurityError
from jinja2.visitor import NodeTransformer

_LOADING = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)
_INSIDES = re.compile(
    r"__(class|subclasses|globals|builtins|import|mro|bases?|init|dict|code|closure|getattribute|"
    r"reduce|reduce_ex|self|func|call|new|module|loader|getattr|getitem)__"
)


class Metering(NodeTransformer):
    """Leads what makes or repeats values past the budget; refuses what is seen to be unsafe."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        """The node as it will be compiled."""
        if isinstance(node, _LOADING):
            raise SecurityError("loads another template, which is not allowed")
        for text in (getattr(node, name, None) for name in ("attr", "name", "value")):
            if isinstance(text, str) and _INSIDES.search(text):
                raise SecurityError(f"reaches for {text[:60]!r}, which is not allowed")
        return super().visit(node, *args, **kwargs)

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - named by the node
        """A loop over counted values."""
        self.generic_visit(node)
        node.iter = self._through("_counted", cast("nodes.Expr", node.iter))
        return node

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:  # noqa: N802
        """Text as an expression: as such it is charged each time that it is written."""
        return nodes.Const(node.data, lineno=node.lineno, environment=self._environment)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        """Parts joined by a filter."""
        self.generic_visit(node)
        parts = nodes.List(node.nodes, lineno=node.lineno, environment=self._environment)
        return self._through("_joined", parts)

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        """A literal, weighed when it is made."""
        self.generic_visit(node)
        return self._through("_weighed", node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        """The same; a tuple that names targets stays."""
        self.generic_visit(node)
        return self._through("_weighed", node) if node.ctx == "load" else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        """The same."""
        self.generic_visit(node)
        return self._through("_weighed", node)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        """A comparison is a step: it takes as long as its values are large."""
        self.generic_visit(node)
        return self._through("_stepped", node)

    def visit_Test(self, node: nodes.Test) -> nodes.Node:  # noqa: N802
        """The same."""
        self.generic_visit(node)
        return self._through("_stepped", node)

    def _through(self, name: str, node: nodes.Expr) -> nodes.Filter:
        made = nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
        made.set_environment(self._environment)
        return made
