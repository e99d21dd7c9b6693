"""YAML as a machine may trust it: maps, lists, strings, numbers, booleans and null, each written out once.

No aliases (which can stand for gigabytes), no tags (which can ask for any type), no key twice, and no more
than a parser gets through in seconds. Numbers are decimal and ints have at most 19 digits; dates, `1:30`,
`0x10` and `1_000` are strings.
"""

import re
from collections.abc import Hashable
from typing import Any

import yaml

_INT = re.compile(r"^[-+]?(?:0|[1-9][0-9]{0,18})$")
_FLOAT = re.compile(
    r"^(?:[-+]?[0-9]+\.[0-9]*(?:[eE][-+][0-9]+)?|\.[0-9]+(?:[eE][-+][0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_MAX_DEPTH = 32
_MAX_VALUES = 50_000  # seconds of work for a sensor
_KEPT = {"tag:yaml.org,2002:bool", "tag:yaml.org,2002:null"}


class _Loader(yaml.SafeLoader):
    _depth = 0
    _n_values = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:  # noqa: ANN401
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases are not allowed", event.start_mark)
        if event.tag is not None:
            raise yaml.composer.ComposerError(None, None, "tags are not allowed", event.start_mark)
        self._n_values += 1
        if self._depth == _MAX_DEPTH or self._n_values > _MAX_VALUES:
            fault = "it is nested too deeply" if self._depth == _MAX_DEPTH else "it holds too many values"
            raise yaml.composer.ComposerError(None, None, fault, event.start_mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:  # noqa: ANN401
        value = super().construct_scalar(node)
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise yaml.constructor.ConstructorError(None, None, "half a character", node.start_mark)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        if len(mapping) != len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a key is there twice", node.start_mark)
        return mapping


# Each pattern is part of what the dumper takes for a number, so that a string never comes back as one.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in _KEPT]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002
        return True


def load_yaml(text: bytes) -> Any:  # noqa: ANN401
    """What a YAML document says, in plain Python values.

    Raises:
        ValueError: it is not YAML, uses an alias or a tag, has the same key twice, is deeper than 32, or has
            more than 50,000 values; in one sentence.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506  a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except OverflowError as error:  # "\UFFFFFFFF"
        raise ValueError("a character is beyond Unicode") from error


def dump_yaml(value: Any) -> bytes:  # noqa: ANN401
    """Plain Python values as a YAML document, in their own order."""
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return text.encode("utf-8")
