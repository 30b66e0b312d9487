"""An error in one line, with what to do about it; knows no command."""

from __future__ import annotations

from gristmill_client import errors

_BY_REASON = {
    "CREDENTIALS_MISSING": "give a token with --token or GRISTMILL_TOKEN",
    "CREDENTIALS_INVALID": "check --token or GRISTMILL_TOKEN",
    "SCOPE_MISSING": "use a token that has the scope {scope}",
    "MODEL_AMBIGUOUS": "name one of {models}",
    "MODEL_NOT_FOUND": "`gristmill ls` lists the models",
    "VERSION_NOT_FOUND": "`gristmill ls MODEL` lists the versions",
    "ALIAS_NOT_FOUND": "`gristmill promote MODEL VERSION` points `live` to a version",
    "MODEL_NOT_LOADED": "give it the alias `live` with `gristmill promote MODEL VERSION`",
    "WRONG_TASK": "`gristmill classify` is for classifiers, `gristmill run` for generators",
    "SOURCE_NOT_FOUND": "`gristmill sources` lists the sources",
    "OPERATION_NOT_FOUND": "`gristmill ops` lists the operations",
    "TRAFFIC_POLICY_NOT_FOUND": "calls get `live`; `gristmill split MODEL 1=90 2=10` spreads them",
    "GATE_UNMET": "`gristmill show MODEL` lists the gates",
}
_BY_CLASS: dict[type[errors.GristmillError], str] = {
    errors.Unauthenticated: _BY_REASON["CREDENTIALS_MISSING"],
    errors.DeadlineExceeded: "give it longer with `gristmill --timeout SECONDS ...`",
    errors.Unavailable: (
        "start it with `gristmill serve`, or name another address "
        "(`gristmill --help` lists the options)"
    ),
    errors.Unimplemented: "is that the address of the right service, and of this version?",
}


def in_one_line(error: Exception) -> str:
    text = str(error) or type(error).__name__
    hint = ""
    if isinstance(error, errors.GristmillError):
        hint = hint_for(error)
    elif not isinstance(error, (OSError, ValueError, TypeError)):
        hint = "`gristmill --debug ...` shows where"
    return " ".join(f"{text}: {hint}".split() if hint else text.split())


def hint_for(error: errors.GristmillError) -> str:
    """What a person can do; empty where we do not know."""
    if error.retry_after is not None:
        return f"try again in {error.retry_after:g} s"
    template = _BY_REASON.get(error.reason)
    if template is None:
        return _BY_CLASS.get(type(error), "")
    try:
        return template.format_map(error.metadata)
    except KeyError:
        return ""
