"""Jinja without the means to harm or to hang: each operation is allowed by name and metered.

Jinja's sandbox keeps a template from Python's insides, but not from taking all time and memory.
No signal and no trace function stops it: the template's tree is changed before it is compiled, so
that loops, texts, concatenations and literals pass through the budget; calls, operators and filters
are intercepted; and what is not on the lists below is refused. Knows no file and no model.
"""

import codecs
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from json import dumps
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, _PassArg

from services.templates.budget import Budget
from services.templates.growth import check_format, check_power, grown, repeated
from services.templates.metering import Metering

FILTERS = (
    *("abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first"),
    *("float", "indent", "int", "items", "join", "last", "length", "list", "lower", "map", "max"),
    *("min", "reject", "rejectattr", "replace", "reverse", "round", "safe", "select"),
    *("selectattr", "sort", "string", "title", "trim", "unique", "upper", "wordcount"),
)
METHODS = (
    *("capitalize", "count", "endswith", "find", "get", "index", "isalnum", "isalpha", "isdigit"),
    *("islower", "isnumeric", "isspace", "istitle", "isupper", "items", "join", "keys", "lower"),
    *("lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex"),
    *("rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase"),
    *("title", "upper", "values", "copy"),
)
# Jinja decodes its texts with it; once confined, a process can import nothing more.
codecs.lookup("unicode_escape")
_BUILTIN = (str, bytes, int, float, list, tuple, dict, set, frozenset)


class Generation(Extension):
    """`{% generation %}` marks for training what an assistant said; nothing to a server."""

    tags = {"generation"}  # noqa: RUF012 - as its base declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Its body."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Opaque(Namespace):
    """A namespace that is not written out: it may hold others twice, and they others, and so on."""

    def __repr__(self) -> str:
        return "<namespace>"


class Sandbox(ImmutableSandboxedEnvironment):
    """An environment for one template."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self, budget: Budget) -> None:
        extensions = [loopcontrols, Generation]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions, cache_size=0)
        self.budget = budget
        self.finalize = self._finalized
        given = self.filters
        self.filters = {name: self._metered(name, given[name]) for name in FILTERS}
        self.filters["tojson"] = self._tojson
        self.filters["_counted"] = self._counted
        self.filters["_weighed"] = self._weighed
        self.filters["_joined"] = self._joined
        self.filters["_stepped"] = self._stepped
        kept = {name: self.globals[name] for name in ("dict", "joiner", "cycler")}
        self.globals = {**kept, "namespace": Opaque, "range": self._range}
        self.globals |= {"raise_exception": _raise, "strftime_now": self._strftime}

    def render_bounded(self, source: str, variables: Mapping[str, Any]) -> int:
        """Render it to nowhere: how many characters it wrote."""
        return sum(len(piece) for piece in self.compiled(source).generate(dict(variables)))

    def compiled(self, source: str) -> jinja2.Template:
        """The template, whose every operation passes through the budget of this environment."""
        tree = Metering(self).visit(self.parse(source))
        code = self.compile(tree)
        # An environment of its own for one template: nothing else is in its globals.
        return jinja2.Template.from_code(self, code, self.make_globals(None))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """A call: of something allowed, with arguments and to an effect that are not too large."""
        args = tuple(__self._listed(value) for value in args)
        given = [value for name, value in kwargs.items() if not name.startswith("_")]
        size = __self.budget.weigh(*args, *given)
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, _BUILTIN):
            __self.budget.weigh(owner)
            __self.budget.room(grown(__obj.__name__, owner, args, kwargs, size))
        result = super().call(__context, __obj, *args, **kwargs)
        __self.budget.weigh(result)
        return result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An operation on values that are not too large, with a result that is not."""
        size = self.budget.weigh(left, right)
        if operator == "*":
            self.budget.room(repeated(left, right) or repeated(right, left) or size)
        if operator == "**":
            check_power(left, right)
        if operator == "%" and isinstance(left, str):
            check_format(left)
            self.budget.room(len(left) * size)
        result = super().call_binop(context, operator, left, right)
        self.budget.weigh(result)
        return result

    def handle_exception(self, source: str | None = None) -> NoReturn:
        """The error as it is: to explain it, Jinja would import and make code."""
        raise

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Attributes that Jinja's sandbox allows; methods of Python's own types by name."""
        if isinstance(obj, _BUILTIN) and attr not in METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        """Refuse at once: what is undefined would only vanish from the output."""
        raise SecurityError(f"uses {attribute!r} of a {type(obj).__name__}, which is not allowed")

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """No formatting by a template's own format: widths in it make texts of any length."""
        if super().wrap_str_format(value) is not None:
            raise SecurityError("uses str.format, which is not allowed; join the parts with ~")
        return None

    def _metered(self, name: str, wrapped: Callable[..., Any]) -> Callable[..., Any]:
        kind = _PassArg.from_obj(wrapped)

        def run(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
            value = self._listed(value)
            size = self.budget.weigh(value, *args, *kwargs.values())
            self.budget.room(grown(name, value, args, kwargs, size))
            first: tuple[Any, ...] = ()
            if kind is not None:
                first = (
                    {"context": context, "eval_context": context.eval_ctx}.get(kind.name, self),
                )
            result = self._listed(wrapped(*first, value, *args, **kwargs))
            self.budget.weigh(result)
            return result

        return pass_context(run)

    @pass_context
    def _finalized(self, _: Context, value: Any) -> Any:
        self.budget.emit(self.budget.weigh(value))
        return value

    @pass_context
    def _counted(self, _: Context, values: Any) -> Any:
        self.budget.step()
        return self.budget.counted(values)

    @pass_context
    def _weighed(self, _: Context, value: Any) -> Any:
        self.budget.weigh(value)
        return value

    @pass_context
    def _joined(self, _: Context, values: list[Any]) -> str:
        self.budget.weigh(values)
        return "".join(str(value) for value in values)

    @pass_context
    def _stepped(self, _: Context, value: Any) -> Any:
        self.budget.step()
        return value

    def _listed(self, value: Any) -> Any:
        """What only comes one by one, as a list: its size is known then."""
        if isinstance(value, range | Iterator) and not isinstance(value, LoopContext):
            return list(self.budget.counted(value))
        return value

    @pass_context
    def _tojson(self, _: Context, value: Any, *args: Any, **kwargs: Any) -> str:
        names = ("ensure_ascii", "indent", "separators", "sort_keys")
        options = dict(zip(names, args, strict=False)) | kwargs
        self.budget.room(self.budget.weigh(value, options) * 6)
        indent = options.get("indent")
        if set(options) - set(names) or not (indent is None or indent in range(17)):
            raise SecurityError("tojson takes ensure_ascii, indent up to 16, separators, sort_keys")
        return dumps(value, **({"ensure_ascii": False} | options))

    def _range(self, *bounds: int) -> range:
        made = range(*bounds)
        self.budget.room(len(made) if abs(made.stop - made.start) < 1 << 62 else 1 << 62)
        return made

    def _strftime(self, layout: str) -> str:
        self.budget.room(len(layout) * 64)
        return datetime.now().strftime(layout)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
