"""Shows docstrings as MkDocs expects them: examples as code, and the fields of a class as its attributes."""

import re
from typing import Any

import griffe

SESSION = re.compile(r"^>>> .*(?:\n(?!\s*$).+)*", re.MULTILINE)
ARGUMENTS = re.compile(r"^Args:\n {4}(\w+)", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Runs over every object of the package, once it is read whole."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """The package itself is not among the objects."""
        self.on_object(obj=pkg)

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrites the docstring in place."""
        if obj.docstring is None or "```" in obj.docstring.value:  # or it is done already
            return
        text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
        first = ARGUMENTS.search(text)
        if first and obj.is_class and "__init__" not in obj.members and "dataclass" not in obj.labels:
            text = ARGUMENTS.sub(rf"Attributes:\n    {first[1]}", text)  # fields of a pydantic model
        obj.docstring.value = SESSION.sub(lambda match: f"```pycon\n{match[0]}\n```", text)
